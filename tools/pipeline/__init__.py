"""What the scripts share: recipes, run folders, the stages of a run, and the two kinds of runs.

`kinds` says what a kind of run must offer, `classifier` and `detector` offer it; `folder` opens runs; `train`,
`search`, `retrain` and `compare` are the stages. It may import the engine, the searchers and the detectors, and no
script.
"""
