"""Exports of a trained model to ONNX and Hugging Face format, verified against torch or refused."""
