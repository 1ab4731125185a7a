"""Pages for a browser. Each module has `build() -> gradio.Blocks`."""
