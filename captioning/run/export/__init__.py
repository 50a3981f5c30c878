"""The caption table as other tools take it: one module a format, over shared reading and writing.

table.py     the table's rows in the index's order, in pieces with fixed numbers
names.py     what an image is called in an export: never a path outside of it, never two alike
target.py    where an export goes: atomic writes, and which pieces are done
exporter.py  piece by piece to the end; txt, imagefolder, coco, webdataset: the formats
"""
