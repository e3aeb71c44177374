"""What surrounds the LSTM on the host, in float32; one module per task.

To add a task: one module here, one line in `TASKS`.
"""

from epur_emu.tasks.translation import Translation

#: Class of each task that a model's card can name.
TASKS = {"translation": Translation}
