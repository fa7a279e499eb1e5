"""A model directory as a compiled, batched function from texts to predictions."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy.special import expit, softmax

from tinybert_jax.batch import Params
from tinybert_jax.data.batches import bucket_lengths
from tinybert_jax.data.tokens import Tokens, encode
from tinybert_jax.devices.sharding import make_mesh, tree_shardings
from tinybert_jax.errors import InputError, note
from tinybert_jax.inference.exported import exported_file, exported_files, load_step
from tinybert_jax.inference.step import make_predict_step, predict_logits
from tinybert_jax.models.config import BertConfig, TextVector
from tinybert_jax.models.files.directory import load_architectures, load_config, load_hf
from tinybert_jax.models.files.tokenizer import load_tokenizer, trained_length
from tinybert_jax.models.fit import check_architecture, check_head, check_token_types, names_head
from tinybert_jax.models.heads import HEADS, head_losses
from tinybert_jax.models.quantized import int8_is_faster, quantized
from tinybert_jax.settings.choices import MIN_LENGTH
from tinybert_jax.tasks import ner, spans
from tinybert_jax.tasks.spans import Answer
from tinybert_jax.tasks.squad import Questions


class TaggedText(NamedTuple):
    """The words of a text, and for each its first character, its tag, and the probability of this tag."""

    words: tuple[str, ...]
    starts: tuple[int, ...]
    tags: tuple[str, ...]
    probabilities: tuple[float, ...]


class Prediction(NamedTuple):
    """The most probable class and its probability. In regression, the label is None and the value is the output.

    For multi-label models, see `Predictor.label_sets`.
    """

    label: str | None
    value: float


THRESHOLD = 0.5  # in multi-label models, a class is predicted if its probability is above this

# head -> what its predictor does instead of being called, in messages
GIVES = {"tokens": "gives `tags`", "span": "gives `answers`", "embedding": "gives `embed`"}


@dataclass(frozen=True, eq=False)
class Predictor:
    """A model, ready to be called: `predictor(["a text"])`; see `tags`, `answers` and `embed` for the other heads."""

    name: str  # the directory or hub id
    config: BertConfig
    params: Params
    tokenizer: Any
    max_length: int
    batch_size: int
    head: str
    step: Callable[..., Any]
    truncate_dim: int | None = None  # for embedding models: length to which vectors are cut; None: not cut

    def __call__(self, texts: Sequence[str | tuple[str, str]]) -> list[Prediction]:
        """One prediction per text, or per pair of texts.

        Raises:
            ValueError: `texts` is a single string, mixes texts and pairs, has rows of more than two texts, or has
                something other than texts (such as the NaN of an empty cell); or the model is not a classifier.
            InputError: as `logits`.
        """
        logits = self._sequence_logits(texts)
        if self.gives_numbers:
            return [Prediction(None, float(value)) for value in logits[:, 0]]
        probabilities = self._likely(logits)
        best = probabilities.argmax(axis=1)
        return [Prediction(self.config.id2label[i], float(row[i])) for i, row in zip(best, probabilities, strict=True)]

    def probabilities(self, texts: Sequence[str | tuple[str, str]]) -> np.ndarray:
        """The probabilities of all classes, float32 [n, c], in the order of `config.id2label`.

        Raises:
            ValueError: as in a call; or the output is a number, not classes.
            InputError: as `logits`.
        """
        if self.gives_numbers:
            raise ValueError("the model gives a number, which has no probability: call the predictor")
        return self._likely(self._sequence_logits(texts))

    def label_sets(
        self, texts: Sequence[str | tuple[str, str]], threshold: float = THRESHOLD
    ) -> list[tuple[str, ...]]:
        """The classes of each text, by a multi-label model.

        Args:
            texts: texts, or pairs of texts.
            threshold: a class is predicted if its probability is above this.

        Raises:
            ValueError: as in a call; or the model is not multi-label.
            InputError: as `logits`.
        """
        if not self.config.is_multi_label:
            raise ValueError("the model does not give a text any number of classes: call the predictor")
        return [self.above(likely, threshold) for likely in self.probabilities(texts)]

    def above(self, likely: np.ndarray, threshold: float = THRESHOLD) -> tuple[str, ...]:
        """The classes whose probabilities [c] are above the threshold."""
        return tuple(label for label, x in zip(self.config.id2label, likely, strict=True) if x > threshold)

    @property
    def gives_numbers(self) -> bool:
        """Whether the output is a number, not classes."""
        return self.is_called and not head_losses(self.head, self.config).has_classes

    @property
    def is_called(self) -> bool:
        """Whether predictions are for whole texts or pairs, so that the predictor can be called."""
        return not HEADS[self.head].per_token and not HEADS[self.head].gives_vectors

    def _likely(self, logits: np.ndarray) -> np.ndarray:
        return expit(logits) if self.config.is_multi_label else softmax(logits, axis=1)

    def tags(self, texts: Sequence[str | Sequence[str]]) -> list[TaggedText]:
        """The words of each text with their tags, by a token classifier.

        A text may be a list of words, for example from a CoNLL file; then character positions are those in the words
        joined by spaces. A string is split by `tasks.ner.split_words`. Long texts are read in parts.

        Raises:
            ValueError: `texts` is a single string, or the model is not a token classifier.
        """
        self._check(self.head == "tokens", texts)
        placed = [ner.split_words(text) if isinstance(text, str) else _joined(text) for text in texts]
        if not placed:
            return []
        words = [tuple(word for word, _ in text) for text in placed]
        tokens = ner.encode_words(words, self.tokenizer, self.max_length)
        probabilities = softmax(ner.word_logits(tokens, self.logits(tokens)), axis=1)
        best = zip(probabilities.argmax(axis=1).tolist(), probabilities.max(axis=1).tolist(), strict=True)
        result = []
        for text in placed:
            chosen = [next(best) for _ in text]
            tags = tuple(self.config.id2label[i] for i, _ in chosen)
            starts, values = tuple(start for _, start in text), tuple(value for _, value in chosen)
            result.append(TaggedText(tuple(word for word, _ in text), starts, tags, values))
        return result

    def answers(self, pairs: Sequence[tuple[str, str]], unanswerable: bool = False) -> list[Answer]:
        """The answer to each question in its context, by a question answering head. Long contexts are read in parts.

        Args:
            pairs: questions, each with its context.
            unanswerable: a question may have no answer, as in SQuAD 2.0.

        Raises:
            ValueError: the model has another head, or a row is not a pair.
            InputError: as `logits`; or a question leaves no room for its context.
        """
        self._check(self.head == "span", pairs)
        if any(isinstance(pair, str) or len(pair) != 2 for pair in pairs):
            raise ValueError("give pairs of a question and its context")
        if not pairs:
            return []
        n = len(pairs)
        asked, contexts = zip(*pairs, strict=True)
        questions = Questions([str(i) for i in range(n)], asked, contexts, [()] * n, [()] * n, False, unanswerable, "")
        tokens, windows = spans.encode_windows(questions, self.tokenizer, self.max_length)
        return spans.best_answers(questions, windows, tokens, self.logits(tokens))

    def embed(self, texts: Sequence[Any], prompt_name: str | None = None) -> np.ndarray:
        """The vector of each text, float32 [n, d], by an embedding model. White space around a text is removed.

        Args:
            texts: single texts.
            prompt_name: the name of the model's prompt to put before each text, such as "query"; default: the model's
                default prompt, if it has one.

        Raises:
            ValueError: `texts` is a single string or has something other than texts, the model has another head, or it
                has no such prompt.
            InputError: the file of an exported model has no output with a vector for each text.
        """
        self._check(HEADS[self.head].gives_vectors, texts)
        if no_texts := [text for text in texts if not isinstance(text, str)]:
            raise ValueError(f"give texts; {no_texts[0]!r} is none")
        if not len(texts):
            return np.zeros((0, self.truncate_dim or self.config.vector_width), np.float32)
        how = self.config.embedding or TextVector()
        prompts = {None: how.prompt} | dict(how.prompts)
        if prompt_name not in prompts:
            known = ", ".join(map(repr, list(prompts)[1:])) or "none"
            raise ValueError(f"{self.name}: has no prompt {prompt_name!r}; its prompts are {known}")
        rows = [((prompts[prompt_name] + text).strip(),) for text in texts]
        return self.logits(encode(rows, self.tokenizer, self.max_length))

    def _check(self, fits: bool, texts: Any) -> None:
        """Refuse a method of another head, and a single string instead of several texts."""
        if not fits:
            does = GIVES.get(self.head, "is called")
            raise ValueError(f"{self.name}: holds a {HEADS[self.head].title}: its predictor {does}")
        if isinstance(texts, str):
            raise ValueError("give a list of texts, even of one")

    def _sequence_logits(self, texts: Any) -> np.ndarray:
        """Logits [n, c] of texts or pairs of texts; see `__call__`."""
        self._check(self.is_called, texts)
        rows = [tuple(row) if isinstance(row, Iterable) and not isinstance(row, str) else (row,) for row in texts]
        if no_texts := [part for row in rows for part in row if not isinstance(part, str)]:
            raise ValueError(f"give texts, or pairs of texts; {no_texts[0]!r} is none")
        widths = {len(row) for row in rows}
        if not widths:
            return np.zeros((0, self.config.num_labels), np.float32)
        if widths not in ({1}, {2}):
            raise ValueError(f"give texts, or pairs of texts; these rows hold {sorted(widths)} texts")
        return self.logits(encode(rows, self.tokenizer, self.max_length))

    def logits(self, tokens: Tokens) -> np.ndarray:
        """Logits float32 [n, c] of tokenised rows; for an embedding model, vectors [n, d].

        Raises:
            InputError: the rows are pairs of texts, and the model has one token type; or as `embed`.
        """
        check_token_types(self.name, self.config, tokens.has_pairs)
        buckets = bucket_lengths(self.max_length)
        logits = predict_logits(self.step, self.params, tokens, self.batch_size, buckets)
        if HEADS[self.head].gives_vectors and logits.ndim != 2:
            raise InputError(
                f"{self.name}: has no output sentence_embedding: export the model's directory with tinybert export"
            )
        return logits[:, : self.truncate_dim] if HEADS[self.head].gives_vectors else logits


def _joined(words: Sequence[str]) -> list[tuple[str, int]]:
    """Words with the positions of their first characters in the words joined by spaces."""
    ends = itertools.accumulate(len(word) + 1 for word in words)
    return [(word, end - len(word) - 1) for word, end in zip(words, ends, strict=True)]


def load_predictor(
    directory: str | Path,
    max_length: int | None = None,
    batch_size: int = 32,
    head: str | None = None,
    int8: bool = False,
    truncate_dim: int | None = None,
) -> Predictor:
    """Load a fine-tuned model from a Hugging Face directory or hub id, or an exported model.

    Args:
        directory: a directory or hub id of a model with a classifier, a regression output, a token classifier, a
            question answering head, or the modules of sentence-transformers; or an ONNX or StableHLO file, or a
            directory with such files. If there are several, ONNX in int8 is taken, and a note says so.
        max_length: longer texts are truncated, in tokens; default: the length that the model was trained with.
        batch_size: texts per compiled call; the last call is filled up.
        head: "sequence", "tokens", "span" or "embedding"; default: the model's head. A predictor with a sequence head
            is called; for the others, see `Predictor.tags`, `Predictor.answers` and `Predictor.embed`.
        int8: dense layers multiply in int8 if this processor is faster with it. Quantised models always do.
        truncate_dim: for embedding models, keep only this number of first numbers of each vector. As in
            sentence-transformers, they are not normalised again.

    Raises:
        InputError: the directory cannot be read or has no such head; the head is unknown; a number is too small;
            `int8` for an exported model; or `truncate_dim` for a model without vectors or with shorter ones.
    """
    predicting = [name for name, row in HEADS.items() if row.on_tasks]
    if head is not None and head not in predicting:
        raise InputError(f"head is {head!r}; it must be one of {', '.join(predicting)}")
    if batch_size < 1 or (max_length is not None and max_length < MIN_LENGTH):
        raise InputError(
            f"batch_size is {batch_size} and max_length {max_length}; they must be at least 1 and {MIN_LENGTH}"
        )
    exported = exported_file(directory)
    if exported is not None:
        if int8:
            raise InputError(f"{directory}: is exported, in the numbers that its format has: leave int8 out")
        name, (file, directory) = str(directory), exported
        several = exported_files(directory)
        if len(several) > 1 and Path(name).name != file.name:
            taken = file.relative_to(directory)
            note(f"{name}: holds {len(several)} exported files: {taken} is taken; for another, name the file")
        config = load_config(directory)
        params: Params = {}
        step = load_step(file)
    else:
        config, params = load_hf(directory)
    tokenizer = load_tokenizer(directory, config)
    length = max_length or trained_length(tokenizer, config)
    if exported is not None:
        architectures = load_architectures(directory)
        head = head or next((name for name in predicting if names_head(config, architectures, name)), "sequence")
        check_architecture(str(file), config, architectures, head, length)
    else:
        head = head or next((name for name in predicting if HEADS[name].is_in(params, config)), "sequence")
        check_head(str(directory), config, params, head, length)
        if config.weight_bits is not None or (int8 and int8_is_faster()):
            config, params = quantized(config, params)
        elif int8:
            note("float32 stays, as int8 is no faster on this processor")
        mesh = make_mesh()
        params = jax.device_put(params, tree_shardings(mesh, params))
        step = make_predict_step(HEADS[head].model(config), mesh, params)
    if truncate_dim is not None and not HEADS[head].gives_vectors:
        raise InputError(f"{directory}: holds a {HEADS[head].title}, which gives no vectors: leave truncate_dim out")
    if truncate_dim is not None and not 1 <= truncate_dim <= config.vector_width:
        raise InputError(
            f"{directory}: its vectors have {config.vector_width} numbers; truncate_dim is {truncate_dim}"
        )
    return Predictor(str(directory), config, params, tokenizer, length, batch_size, head, step, truncate_dim)
