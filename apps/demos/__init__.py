"""Pages for a browser. Each page's module has `build(...) -> gradio.Blocks`."""

import os

# Before gradio is imported: it reads these once. Nothing is told to anybody.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
