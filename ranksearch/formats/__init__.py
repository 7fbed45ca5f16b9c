"""Export formats of a finished network."""

# Names of the formats that `ranksearch.formats.export` writes, default first.
NAMES = ("plain", "torch_export", "onnx", "state_dict")
