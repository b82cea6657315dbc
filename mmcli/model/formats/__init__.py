"""Model files: HF-format folders (ours and others'), MiniMind `.pth`, GGUF. One table a format, read and write.

`fields.py` is what a table is; `families.py` the Hugging Face families, `minimind.py`, `gguf_table.py` the others.
`hf_folder.py` loads and saves, `read.py` imports whatever file it is given.
"""
