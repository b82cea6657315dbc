"""A folder that runs a model in the visitor's browser: page, engine (JavaScript), ONNX Runtime Web, model."""
