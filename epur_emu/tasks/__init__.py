"""What surrounds the LSTM on the host, in float32; one module per task.

To add a task: one module with a class of `base.Task`, one line in `TASKS`.
"""

from epur_emu.tasks.activity import SpeechActivity
from epur_emu.tasks.base import Answer, Task
from epur_emu.tasks.captioning import Captioning
from epur_emu.tasks.speech import Speech
from epur_emu.tasks.translation import Translation

#: Class of each task that a model's card can name.
TASKS: dict[str, type[Task]] = {
    "activity": SpeechActivity,
    "captioning": Captioning,
    "speech": Speech,
    "translation": Translation,
}

__all__ = ["TASKS", "Answer", "Task"]
