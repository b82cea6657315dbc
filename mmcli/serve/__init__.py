"""Models behind the HTTP interface of OpenAI: one scheduler a model, FastAPI and uvicorn in front of them."""
