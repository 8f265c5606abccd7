"""The built-in tasks keep the contract of a task."""

from divot_datamodules.tasks.built_in import CaptionTask, ConversationTask, GenerateTask, QuestionTask, StoryTask
from divot_datamodules.toy.open_captions import OpenGenerateTask
from divot_lightning.testing import TaskConformance

TURNS = [{"question": "what colour ?", "answer": "red"}, {"question": "what shape ?", "answer": "a circle"}]


class TestCaptionTask(TaskConformance):
    num_clips = 3

    def make_task(self, template):
        return CaptionTask(template, prompts=["Tell me .", "What is it ?"])

    def make_text(self):
        return {"caption": "a red circle {moves}"}


class TestGenerateTask(TaskConformance):
    num_clips = 3

    def make_task(self, template):
        return GenerateTask(template)

    def make_text(self):
        return {"caption": "a red circle {} moves"}


class TestOpenGenerateTask(TaskConformance):
    num_clips = 3

    def make_task(self, template):
        return OpenGenerateTask(template)

    def make_text(self):
        return {"attributes": {"colour": "red", "shape": "circle", "direction": "up", "speed": "slowly"}}


class TestQuestionTask(TaskConformance):
    num_clips = 2

    def make_task(self, template):
        return QuestionTask(template, prompts=["{} Answer shortly ."])

    def make_text(self):
        return {"questions": TURNS}


class TestConversationTask(TaskConformance):
    def make_task(self, template):
        return ConversationTask(template)

    def make_text(self):
        return {"questions": TURNS}


class TestStoryTask(TaskConformance):
    num_clips = 2

    def make_task(self, template):
        return StoryTask(template)

    def make_text(self):
        return {"story": {"instruction": "tell of a circle", "texts": ["it came", "it went"]}}
