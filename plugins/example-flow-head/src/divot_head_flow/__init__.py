"""A flow-matching generation head for divot-lightning."""

from divot_head_flow.head import FlowHead

__all__ = ["FlowHead"]
