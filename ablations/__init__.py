"""The study of what each component of mrcnn_plugin is worth. README.md has its conclusions.

Nothing outside this folder depends on it.
"""
