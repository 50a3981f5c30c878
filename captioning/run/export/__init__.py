"""Exports the caption table to the formats of other tools: one module per format, over shared reading and writing.

table.py     the table's rows in the index's order, in numbered pieces
names.py     safe and unique names for the images of an export
target.py    the destination: atomic writes, and a record of the finished pieces
exporter.py  runs an export; txt, imagefolder, coco and webdataset are the formats
"""
