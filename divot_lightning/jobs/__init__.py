"""Long jobs of many steps: run side by side, remembered, gone on with after a stop."""
