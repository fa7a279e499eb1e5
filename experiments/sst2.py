"""SST-2: a fine-tuned teacher distilled into TinyBERT4, with the paper's recipe but without its augmentation.

    tinybert finetune --model BERT --task sst2 --data SST-2 --out runs/teacher
    tinybert run experiments/sst2.py --out runs/sst2-tinybert4

Paths are relative to the current directory: the task's official files in SST-2/, the teacher in runs/.

Not run in full yet. One seed of 1,600 + 800 steps at higher learning rates, with all-MiniLM-L6-v2 as BERT (one epoch,
dev accuracy 90.3 %), gave 86.0 %, and the same student on the labels alone, for as many steps, 81.8 %:

    tinybert finetune --model MINILM --task sst2 --data SST-2 --epochs 1 --learning-rate 1e-4 --evaluate-every 500 \\
        --out runs/sst2-teacher
    tinybert distill --teacher runs/sst2-teacher/student --student tinybert-4l-312d --task sst2 --data SST-2 \\
        --start random --transformer-steps 1600 --transformer-learning-rate 5e-4 --prediction-steps 800 \\
        --prediction-learning-rate 2e-4 --evaluate-every 200 --out runs/sst2-short
    tinybert distill --stage supervised --teacher runs/sst2-teacher/student --student tinybert-4l-312d --task sst2 \\
        --data SST-2 --prediction-steps 2400 --prediction-learning-rate 2e-4 --evaluate-every 200 \\
        --out runs/sst2-baseline
"""

import tinybert_jax as tb

experiment = tb.Experiment(
    task="sst2",
    source=tb.DataSource(data="SST-2"),
    model="tinybert-4l-312d",
    teacher="runs/teacher/student",
    start="random",
    stages=(
        tb.Stage(tb.Transformer(), epochs=20, learning_rate=5e-5, schedule="constant"),
        tb.Stage(tb.Prediction(), epochs=3, learning_rate=3e-5),
    ),
    max_length=64,
)
