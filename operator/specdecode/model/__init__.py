"""Estimators: what a window of metrics says, what a step costs, where a load settles."""
