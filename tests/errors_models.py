"""Bad models: ids, folders and objects that cannot be loaded, or not unlearned; and machines they cannot run on."""

import os
from pathlib import Path
from unittest import mock

import torch
import transformers as hf
from errors_case import CACHE, TOKEN, Case, a_file, a_model, edit, load, run, saved_model, without, writing
from tiny import config, images, tiny_model, tiny_processor, trainer
from torch import nn

from zspag_hf import UnlearningConfig, UnlearningTrainer
from zspag_hf.hub.models import HubOptions, load_classifier, load_processor

INDEX = "model.safetensors.index.json"
FIVE = {str(i): name for i, name in enumerate("abcde")}
COMMIT = "a1" * 20


def replaced(name: str, text: str):
    """A change: other weights in place of the safetensors file."""
    return lambda folder: (without("model.safetensors")(folder), writing(name, text)(folder))


def half_cached(folder: Path) -> str:
    """A cache of the Hub's client that holds a model's small files, and not its weights."""
    place = folder / "models--user--half"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(COMMIT)
    snapshot = place / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    for name in ("config.json", "preprocessor_config.json"):
        (snapshot / name).write_bytes((saved_model() / name).read_bytes())
    return str(folder)


def backbone(folder: Path) -> str:
    hf.ViTModel(tiny_model().config, add_pooling_layer=False).save_pretrained(folder / "model")
    tiny_processor().save_pretrained(folder / "model")
    return str(folder / "model")


def changed(change):
    """A feed: the trainer on a model object with something wrong in it."""

    def feed(folder: Path):
        model = tiny_model()
        change(model)
        return trainer(folder, model=model)

    return feed


def without_name(model) -> None:
    """Five names, of which the last is the id 9's."""
    model.config.id2label[9] = model.config.id2label.pop(4)


def with_adapter(model) -> None:
    layer = type("Linear", (nn.Linear,), {"__module__": "peft.tuners.lora.layer"})
    model.classifier = layer(16, 5)


class Headless(hf.ViTForImageClassification):
    """Five logits cut out of ten."""

    def __init__(self, config):
        super().__init__(config)
        self.classifier = nn.Linear(config.hidden_size, 10)

    def forward(self, pixel_values):
        output = super().forward(pixel_values)
        output.logits = output.logits[:, :5]
        return output


def on(**properties):
    """A feed: the trainer on another machine."""

    def feed(folder: Path):
        with mock.patch.multiple(UnlearningConfig, **properties):
            return trainer(folder)

    return feed


def launched(**environment):
    def feed(folder: Path):
        with mock.patch.dict(os.environ, environment):
            return trainer(folder)

    return feed


def with_processor(processor):
    return lambda folder: UnlearningTrainer(tiny_model(), config(folder), images([2] * 12), processing_class=processor)


BY_NAME = [
    Case("no such model", lambda _: load()("nowhere/at-all"), "'nowhere/at-all'", "give a folder"),
    Case("no id at all", lambda _: load()("a/b/c"), "'a/b/c'", "no id of a Hub repository, user/name"),
    Case("a file", load(), "/weights.bin'", "Give the folder", a_file("", "weights.bin")),
    Case("a folder's revision", load(revision="v1"), "'v1'", "leave the revision out", a_model()),
    Case(
        "weights that are not cached",
        lambda cache: load_classifier("user/half", hub=HubOptions(token=TOKEN, cache_dir=cache)),
        "'user/half'",
        "Connect once",
        half_cached,
    ),
    Case(
        "a plain module",
        lambda folder: UnlearningTrainer(nn.Linear(2, 2), config(folder), images([2])),
        "Linear",
        "zspag_hf.hub.adapter",
    ),
    Case(
        "a trainer's model",
        lambda folder: UnlearningTrainer("no/model", config(folder, cache_dir=CACHE), images([2])),
        "'no/model'",
        "give a folder",
    ),
]

SAVED = [
    Case("no config", load(), "no config.json", "save_pretrained", a_model(without("config.json"))),
    Case("a broken config", load(), "its config.json cannot", "Repair", a_model(writing("config.json", "{"))),
    Case("a config that is a list", load(), "holds a list", "Repair", a_model(writing("config.json", "[1]"))),
    Case(
        "an adapter", load(), "adapter_config.json", "merge_and_unload", a_model(writing("adapter_config.json", "{}"))
    ),
    Case("a text model", load(), "'bert'", "Give a model of another type", a_model(edit(model_type="bert"))),
    Case(
        "code of its own",
        load(),
        "'own'",
        "trust_remote_code=True",
        a_model(edit(model_type="own", auto_map={"AutoConfig": "own.Own"})),
    ),
    Case("unnamed ids", load(), "id2label", "Correct it", a_model(edit(id2label=["a"], label2id=None))),
    Case("two numbers of labels", load(), "num_labels 3", "Correct one", a_model(edit(id2label=FIVE, num_labels=3))),
    Case("no weights", load(), "no model.safetensors", "save_pretrained", a_model(without("model.safetensors"))),
    Case(
        "pickled weights",
        load(),
        "pytorch_model.bin",
        "allow_pickled_weights=True",
        a_model(replaced("pytorch_model.bin", "x")),
    ),
    Case("an empty index", load(), INDEX, "Repair", a_model(replaced(INDEX, "{}"))),
    Case(
        "a missing part",
        load(),
        "'part.safetensors'",
        "Give all parts",
        a_model(replaced(INDEX, '{"weight_map": {"a": "part.safetensors"}}')),
    ),
    Case("damaged weights", load(), "its weights are damaged", "again", a_model(writing("model.safetensors", "x"))),
    Case(
        "a head of another size",
        load(),
        "(5,)",
        "Give id2label a name for each row",
        a_model(edit(id2label={"0": "a", "1": "b"}, label2id=None)),
    ),
    Case("a model without a head", load(), "classifier.bias", "fine-tuned for classification", backbone),
    Case(
        "no image processor",
        lambda path: load_processor(path),
        "preprocessor_config.json is missing",
        "processing_class=",
        a_model(without("preprocessor_config.json")),
    ),
]

OBJECTS = [
    Case(
        "an object without processor",
        lambda folder: UnlearningTrainer(tiny_model(), config(folder), images([2])),
        "given as an object",
        "processing_class",
    ),
    Case("adapter layers", changed(with_adapter), "Linear at classifier", "merge_and_unload"),
    Case("half precision", changed(lambda m: m.half()), "torch.float16", "dtype=torch.float32"),
    Case("the other half precision", changed(lambda m: m.to(torch.bfloat16)), "torch.bfloat16", "dtype=torch.float32"),
    Case(
        "weights that are not finite",
        changed(lambda m: nn.init.constant_(m.classifier.weight, torch.nan)),
        "'classifier.weight' is not finite",
        "give finite weights",
    ),
    Case(
        "an id without a name",
        changed(without_name),
        "the id 4",
        "config.id2label",
    ),
    Case(
        "a name that is no text", changed(lambda m: m.config.id2label.update({4: None})), "the id 4", "config.id2label"
    ),
    Case("no head", run(model=Headless(tiny_model().config).eval()), "its 5 labels", "method='zspag_paper'"),
    Case(
        "no head to scatter the features of",
        run(model=Headless(tiny_model().config).eval(), method="spotter"),
        "its 5 labels",
        "method='delete'",
    ),
    Case(
        "a model that gives no logits",
        run(model=hf.ViTModel(tiny_model().config).eval()),
        "'logits'",
        "Give an image classifier",
    ),
    Case(
        "another model's processor",
        with_processor(hf.ViTImageProcessorPil(size={"height": 16, "width": 16})),
        "(3, 16, 16)",
        "processing_class",
    ),
    Case(
        "a processor that divides by zero",
        with_processor(hf.ViTImageProcessorPil(size={"height": 8, "width": 8}, image_std=[0.0] * 3)),
        "not 5 finite numbers",
        "processing_class",
    ),
]

RUNNING = [
    Case(
        "options of another kind",
        lambda _: UnlearningTrainer(tiny_model(), {}, images([2])),
        "dict",
        "UnlearningConfig",
    ),
    Case("a method that needs retained data", run(method="finetune"), "FineTune", "pass retain_dataset"),
    Case("retained data that were asked for", run(method="salun", with_retain=True), "SalUn", "pass retain_dataset"),
    Case("public images for others", run(method="salun", public=images([0])), "SalUn", "leave public_dataset out"),
    Case("an Apple GPU", on(device=torch.device("mps")), "'mps'", "use_cpu=True"),
    Case("two GPUs in one process", on(n_gpu=2), "2 GPUs", "accelerate launch"),
    Case("a launch that started too few", launched(MASTER_ADDR="127.0.0.1"), "several processes", "accelerate launch"),
    Case("FSDP without GPUs", launched(ACCELERATE_USE_FSDP="true"), "FSDP shards", "--use_fsdp"),
    Case("evaluation on nothing", run(eval_strategy="epoch"), "eval_strategy", "`eval_dataset`"),
]

CASES = [*BY_NAME, *SAVED, *OBJECTS, *RUNNING]
