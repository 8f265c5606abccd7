"""A task for divot-lightning: read the clips, name an attribute of what they show."""

from divot_task_attribute.task import AttributeTask

__all__ = ["AttributeTask"]
