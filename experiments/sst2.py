"""SST-2: a fine-tuned teacher distilled into TinyBERT4, with the paper's recipe but without its augmentation.

    tinybert finetune --model BERT --task sst2 --data SST-2 --out runs/sst2-teacher
    tinybert run experiments/sst2.py --out runs/sst2-tinybert4

Paths are relative to the current directory: the task's official files in SST-2/, the teacher in runs/.
"""

import tinybert_jax as tb

experiment = tb.Experiment(
    task="sst2",
    source=tb.DataSource(data="SST-2"),
    model="tinybert-4l-312d",
    teacher="runs/sst2-teacher/student",
    stages=(
        tb.Stage("transformer", epochs=20, learning_rate=5e-5, schedule="constant"),
        tb.Stage("prediction", epochs=3, learning_rate=3e-5),
    ),
    max_length=64,
)
