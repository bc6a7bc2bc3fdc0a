"""The page: people classify images in the browser. Gradio is imported only when it is built."""
