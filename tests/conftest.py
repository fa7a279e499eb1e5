"""Fixtures common to all tests. The environment is set here, before jax and huggingface_hub read it."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from transformers import BertTokenizer

    from tinybert_jax.settings.experiment import Experiment
    from tinybert_jax.training.run import Result

pytest.register_assert_rewrite("fuzzing", "in_process")  # helpers: a failing assert shows its values
collect_ignore = ["torch_reference.py", "fixtures/make_fixtures.py"]  # not tests; they import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # no test needs the network
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"  # (b, q) + (q,) is a bug more often than a wish
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the same numbers on every machine
# tests are compiled for longer than they compute
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")  # or the command would start pytest anew
# what one test compiles, the others and their subprocesses read; removed when the session ends. Workers that share the
# tests out (pytest -n) have one each, in it: a file of the cache can be read while it is being written
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    os.environ["JAX_COMPILATION_CACHE_DIR"] += f"/{worker}"
else:
    _COMPILED = tempfile.TemporaryDirectory(prefix="tinybert-jax-compiled-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _COMPILED.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"


@pytest.fixture(scope="session", autouse=True)
def _cache_of_the_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fixtures wider than one test do not touch the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINYBERT_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def cache_dir(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of this test's own."""
    path = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("TINYBERT_JAX_CACHE", str(path))
    return path


@pytest.fixture(autouse=True)
def _notes_of_each_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test sees its notes, also those that another test has seen."""
    monkeypatch.setattr("tinybert_jax.errors._NOTES", set())


def on_devices(count: int) -> dict[str, str]:
    """The environment of a subprocess on so many fake devices, whose programs are compiled as those here."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={count}"
    return os.environ | {"XLA_FLAGS": flags}


def run_here(command: list[str]) -> None:
    """Run `python -m tinybert_jax.cli ...` in this process, which imports and compiles no second time."""
    from tinybert_jax.cli import entry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", command[2:])
        patch.setattr(sys, "unraisablehook", sys.unraisablehook)  # the command sets one of its own
        entry.main()


TINY = Path(__file__).parent / "fixtures" / "tiny-bert"
# of the models among the fixtures, those that have each family and each head at least once
FEW_MODELS = [
    *("tiny-bert", "tiny-albert-mlm", "tiny-distilbert-token", "tiny-electra", "tiny-mobilebert"),
    *("tiny-mpnet-encoder", "tiny-roberta-qa"),
]


def rest_long(cases: Iterable[Any], few: Sequence[Any] = FEW_MODELS) -> list[Any]:
    """Values for `parametrize`: `make test` takes those among `few`, and the others are marked `long`."""
    every = list(cases)
    assert any(case in few for case in every), f"none of {few} is a case"
    return [
        case if case in few else pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.long)
        for case in every
    ]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A copy of the classifier among the fixtures, to damage."""
    return Path(shutil.copytree(TINY, tmp_path / "bert"))


WORDS = "the a film plot is was good bad dull fine very not and so".split()


def make_tokenizer(folder: Path, words: Sequence[str] = tuple(WORDS)) -> BertTokenizer:
    """A WordPiece tokenizer of these words."""
    from transformers import BertTokenizer

    path = folder / f"vocab{len(words)}.txt"
    path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    return BertTokenizer(vocab=str(path))


GOOD, BAD = "lovely great fine tasty crisp".split(), "awful stale bland bitter burnt".split()
NEUTRAL = "the a bag of chips was and very rather quite i we bought it".split()


def family_tokenizer(family: str, words: Sequence[str]) -> Any:
    """RoBERTa's kind of tokenizer, XLM-R's or MPNet's, with a token for each of these words after a space."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import MPNetTokenizer, RobertaTokenizer, XLMRobertaTokenizer

    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    if family == "mpnet":
        return MPNetTokenizer(vocab={piece: i for i, piece in enumerate([*special, "[UNK]", *words])})
    if family == "xlm-roberta":  # training one needs more text to find words
        letters = dict.fromkeys("\u2581" + "".join(words), -9.0)
        scores = dict.fromkeys(special, 0.0) | letters | dict.fromkeys((f"\u2581{word}" for word in words), -1.0)
        return XLMRobertaTokenizer(vocab=[*scores.items()])
    trained = ByteLevelBPETokenizer()
    text = [f" {word}" for word in words] * 2
    trained.train_from_iterator(text, vocab_size=1000, special_tokens=special, show_progress=False)
    model = json.loads(trained.to_str())["model"]
    return RobertaTokenizer(vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]])


def write_model(directory: Path, *, words: tuple[str, ...] = (), family: str = "bert", **sizes: int) -> Path:
    """A random model with the tokenizer of the synthetic reviews, as a Hugging Face directory without a head."""
    import jax
    from transformers import BertTokenizer

    import tinybert_jax as tb

    vocabulary = [*NEUTRAL, *GOOD, *BAD, *words]
    directory.mkdir(parents=True)
    if family in ("bert", "distilbert", "electra"):
        vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *vocabulary]
        (directory / "vocab.txt").write_text("\n".join(vocabulary))
        tokenizer: Any = BertTokenizer(vocab=str(directory / "vocab.txt"))
        sizes = {"distilbert": {"type_vocab_size": 0}, "electra": {"embedding_size": 12}}.get(family, {}) | sizes
    else:
        tokenizer = family_tokenizer(family, vocabulary)
        pad = tokenizer.pad_token_id
        types = 0 if family == "mpnet" else 1
        sizes = {"type_vocab_size": types, "pad_token_id": pad, "max_position_embeddings": 33 + pad} | sizes
    # not the number of tokens: ids are left out where the words hold one twice
    sizes = {"vocab_size": max(tokenizer.get_vocab().values()) + 1, "max_position_embeddings": 32} | sizes
    config = tb.BertConfig(model_type=family, num_attention_heads=4, initializer_range=0.1, **sizes)
    params = {"encoder": tb.init_params(tb.BertModel(config), jax.random.key(0))}
    tb.save_hf(directory, config, params, tokenizer)
    return directory


IDENTITY = "torch.nn.modules.linear.Identity"
TYPES = "sentence_transformers.models."  # of the modules in a modules.json


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_sentence_model(
    directory: Path, source: Path = TINY, mode: str = "mean_tokens", width: int | None = None, normalize: bool = True
) -> Path:
    """A model's directory with the files beside it that sentence-transformers writes."""
    shutil.copytree(source, directory)
    kinds = ["Pooling", *(["Dense"] if width else []), *(["Normalize"] if normalize else [])]
    paths = [f"{number}_{kind}" for number, kind in enumerate(kinds, 1)]
    modules = [{"idx": 0, "name": "0", "path": "", "type": f"{TYPES}Transformer"}]
    for number, (kind, path) in enumerate(zip(kinds, paths, strict=True), 1):
        modules.append({"idx": number, "name": str(number), "path": path, "type": TYPES + kind})
    write_json(directory / "modules.json", modules)
    hidden = json.loads((directory / "config.json").read_text())["hidden_size"]
    modes = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")
    flags = {f"pooling_mode_{name}": name == mode for name in modes}
    write_json(directory / "1_Pooling/config.json", {"word_embedding_dimension": hidden} | flags)
    write_json(directory / "sentence_bert_config.json", {"max_seq_length": 12, "do_lower_case": False})
    if width:
        sizes = {"in_features": hidden, "out_features": width, "bias": True, "activation_function": IDENTITY}
        write_json(directory / "2_Dense/config.json", sizes)
        random = np.random.default_rng(0)
        weights = {"linear.weight": random.normal(size=(width, hidden)), "linear.bias": random.normal(size=width)}
        named = {name: array.astype(np.float32) for name, array in weights.items()}
        from safetensors.numpy import save_file

        save_file(named, directory / "2_Dense/model.safetensors")
    return directory


def write_reviews(directory: Path, train: int = 192, dev: int = 64) -> Path:
    """train.tsv and dev.tsv of synthetic reviews, each with one telling word among neutral ones."""
    random = np.random.default_rng(0)
    directory.mkdir(parents=True)
    for name, n in (("train", train), ("dev", dev)):
        lines = ["text\tlabel"]
        for _ in range(n):
            label = random.choice(["good", "bad"])
            words = list(random.choice(NEUTRAL, random.integers(3, 13)))
            words.insert(random.integers(len(words)), random.choice(GOOD if label == "good" else BAD))
            lines.append(f"{' '.join(words)}\t{label}")
        (directory / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    return directory


def rewrite_reviews(directory: Path, reviews: Path, header: str, row: Callable[[str, str], str]) -> None:
    """`reviews` into an existing directory, each text and label as `row` writes them."""
    for name in ("train", "dev"):
        rows = [line.split("\t") for line in (reviews / f"{name}.tsv").read_text().splitlines()[1:]]
        (directory / f"{name}.tsv").write_text("\n".join([header, *(row(*cells) for cells in rows)]) + "\n")


def write_scored_reviews(directory: Path, reviews: Path) -> None:
    """`reviews` for the task `regression`: 1.0 for the good ones, 0.0 for the bad."""
    rewrite_reviews(directory, reviews, "text\tlabel", lambda text, label: f"{text}\t{float(label == 'good')}")


@pytest.fixture(scope="session")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in the GLUE layout, for the task `classification`."""
    return write_reviews(tmp_path_factory.mktemp("reviews") / "data")


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of 4 layers, 32 wide, with no head."""
    path = tmp_path_factory.mktemp("pretrained") / "bert"
    return write_model(path, hidden_size=32, num_hidden_layers=4, intermediate_size=64)


@pytest.fixture(scope="session")
def blank_student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of 2 layers, 16 wide, with no head."""
    path = tmp_path_factory.mktemp("student") / "bert"
    return write_model(path, hidden_size=16, num_hidden_layers=2, intermediate_size=32)


@pytest.fixture(scope="session")
def teacher_result(pretrained: Path, reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """`pretrained`, fine-tuned on `reviews` by the real program."""
    import tinybert_jax as tb

    experiment = tb.Experiment(
        task="classification",
        source=tb.DataSource(data=str(reviews)),
        model=str(pretrained),
        stages=(tb.Stage("supervised", epochs=12, learning_rate=3e-3, evaluate_every=24),),
        max_length=16,  # one bucket, so one compilation
    )
    return tb.run(experiment, tmp_path_factory.mktemp("teacher") / "run")


@pytest.fixture(scope="session")
def teacher(teacher_result: Result) -> Path:
    """The directory of a fine-tuned teacher."""
    return teacher_result.directory


def distillation(teacher: Path | Any, student: Path, reviews: Path, **changes: Any) -> Experiment:
    """An experiment of two short stages, with `changes` to its settings; `compression` is that of its first stage."""
    import tinybert_jax as tb

    methods = changes.pop("compression", ())

    experiment = tb.Experiment(
        task="classification",
        source=tb.DataSource(data=str(reviews)),
        model=str(student),
        teacher=str(teacher) if isinstance(teacher, Path) else teacher,
        stages=(
            tb.Stage("transformer", epochs=8, learning_rate=3e-3, schedule="constant"),
            tb.Stage("prediction", epochs=8, learning_rate=3e-3, evaluate_every=16),
        ),
        max_length=16,
    )
    experiment = dataclasses.replace(experiment, **changes)
    first, *later = experiment.stages
    return dataclasses.replace(experiment, stages=(dataclasses.replace(first, compression=methods), *later))


def resumed_beside_another(
    alone: Experiment, out: Path, breaks: Callable[[Any, int], bool], monkeypatch: pytest.MonkeyPatch
) -> list[bytes]:
    """The weights of a population of an experiment and one of another seed, broken off and resumed.

    `breaks(log, step)` says before which of a stage's steps.
    """
    import tinybert_jax as tb
    from tinybert_jax.training.logs import StageLog

    step = StageLog.step

    def broken(self: StageLog, number: int, *more: Any) -> None:
        if breaks(self, number):
            raise KeyboardInterrupt
        step(self, number, *more)

    both = [alone, dataclasses.replace(alone, seed=1, data_seed=0)]
    with monkeypatch.context() as patch:
        patch.setattr(StageLog, "step", broken)
        with pytest.raises(KeyboardInterrupt):
            tb.run_population(both, out)
    results = tb.run_population(both, out, resume=True)
    return [(result.directory / "model.safetensors").read_bytes() for result in results]


def logged(out: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """The lines of a run's log."""
    return [json.loads(line) for line in (out / name).read_text().splitlines()]


# of all commands that are disturbed: equal stages are compiled once
SHORT = "--transformer-epochs 6 --prediction-epochs 6 --seed 5 --no-report".split()


@pytest.fixture(scope="session")
def unbroken(teacher: Path, blank_student: Path, reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights that `distill` with SHORT gives when nothing disturbs it; how often it saves changes none."""
    out = tmp_path_factory.mktemp("unbroken") / "run"
    models = ["--teacher", str(teacher), "--student", str(blank_student), "--data", str(reviews)]
    program = [sys.executable, "-m", "tinybert_jax.cli", "distill", *models, "--task", "classification"]
    run_here([*program, "--max-length", "16", "--out", str(out), *SHORT])
    return (out / "student" / "model.safetensors").read_bytes()


PEOPLE, CITIES = "anna ben carla dan".split(), "rome oslo lima cairo".split()
DRINKS = ["green tea", "milk", "cold water", "coffee"]
QA_WORDS = tuple("lives in likes . where does live what like ? she he now".split()) + tuple(
    word for phrase in (*PEOPLE, *CITIES, *DRINKS) for word in phrase.split()
)


def write_squad(directory: Path, version: str = "1.1", train: int = 128, dev: int = 48) -> Path:
    """train-vVERSION.json and dev-vVERSION.json on people's homes and drinks, in the words of QA_WORDS.

    The question word tells the kind of answer. In 2.0, a third of the contexts says nothing of what is asked.
    """
    random = np.random.default_rng(1)
    directory.mkdir(parents=True)
    for name, n in (("train", train), ("dev", dev)):
        paragraphs = []
        for i in range(n):
            person, city, drink = (str(random.choice(words)) for words in (PEOPLE, CITIES, DRINKS))
            sentences = [(f"{person} lives in {city} .", city), (f"now {person} likes {drink} .", drink)]
            asked = random.integers(2)
            question = [f"where does {person} live ?", f"what does {person} like ?"][asked]
            impossible = version.startswith("2") and random.random() < 1 / 3
            kept = [sentences[1 - asked]] if impossible else [sentences[k] for k in random.permutation(2)]
            context, answer = " ".join(text for text, _ in kept), sentences[asked][1]
            gold = [] if impossible else [{"text": answer, "answer_start": context.index(answer)}]
            qa = {"id": f"{name}-{i}", "question": question, "answers": gold}
            qa |= {"is_impossible": impossible} if version.startswith("2") else {}
            paragraphs.append({"context": context, "qas": [qa]})
        content = {"version": version, "data": [{"title": "people", "paragraphs": paragraphs}]}
        (directory / f"{name}-v{version}.json").write_text(json.dumps(content))
    return directory


NER_WORDS = (*QA_WORDS, "saw", "and", "left", "for", "smith", "jones", "new")


def write_conll(directory: Path, train: int = 128, dev: int = 48) -> Path:
    """train.txt and dev.txt of people (PER) and cities (LOC), tagged in IOB2, in the words of NER_WORDS."""
    random = np.random.default_rng(2)
    directory.mkdir(parents=True)
    for name, n in (("train", train), ("dev", dev)):
        lines = ["-DOCSTART- O", ""]
        for _ in range(n):
            people = [
                [str(random.choice(PEOPLE))],
                [str(random.choice(PEOPLE)), str(random.choice(["smith", "jones"]))],
            ]
            city = [["new"], []][random.integers(2)] + [str(random.choice(CITIES))]
            first, second = (people[k] for k in random.permutation(2))
            sentence = [(first, "PER"), (["saw"], ""), (second, "PER"), (["and", "left", "for"], ""), (city, "LOC")]
            for words, kind in sentence:
                tags = [f"{'I' if i else 'B'}-{kind}" if kind else "O" for i in range(len(words))]
                lines += [f"{word} {tag}" for word, tag in zip(words, tags, strict=True)]
            lines.append("")
        (directory / f"{name}.txt").write_text("\n".join(lines))
    return directory
