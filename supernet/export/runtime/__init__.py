"""What an exported model.py does beyond building its network.

The functions of `weights`, of `classify` or `detect`, and of `supernet.data.opening` are copied into model.py; `runner`
and `timer` load an export in a process of its own. The modules import the standard library, torch, torchvision and,
where it is installed, onnxruntime, and nothing else of this project.
"""
