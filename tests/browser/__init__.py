"""The site in a real browser: headless Chromium, driven by ChromeDriver. Run by name: `pytest tests/browser`."""
