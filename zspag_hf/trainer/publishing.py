"""A saved result -> one commit on the Hub, or none.

What goes up is built anew in a folder of its own, from a list of what may: weights, config, image processor, the report
without anything that stands for a single image or proxy, its page, its figures and the card. Whatever else lies in the
output folder (checkpoints, optimizer states, ``training_args.bin``, ``_request.json``, logs) stays.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.utils import filter_repo_objects, validate_repo_id
from safetensors import SafetensorError, safe_open
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ..data.request import LEDGER
from ..errors import UnlearningError
from ..hub.errors import hub_errors
from ..report.card import model_card
from ..report.files import write_whole
from ..report.report import PAGE_NAME, REPORT_NAME, UnlearningReport
from .output_dir import CARD_NAME, MODEL_FILES

CONFIGS = (CONFIG_NAME, "preprocessor_config.json", "processor_config.json")
# Weights in other files of the repository would still remember: they go in the same commit.
WEIGHTS = [
    "*.safetensors",
    "*.safetensors.index.json",
    *(f"*.{suffix}" for suffix in ("bin", "bin.index.json", "h5", "msgpack", "ckpt", "pt", "pth", "onnx", "tflite")),
    *("*.pb", "*.keras", "*.gguf"),
]
REPLACED = [*WEIGHTS, "figures/*.png", PAGE_NAME]


def public_report(report: UnlearningReport) -> UnlearningReport:
    """The report without proxies as points and without attention maps, which can be those of a single image; page and
    figures are drawn from what is left."""
    public = copy.copy(report)
    public.projection, public.heatmaps = None, {}
    return public


def check_result(folder: str) -> UnlearningReport:
    """The report of a saved result.

    Raises:
        UnlearningError: no such folder, no report of an unlearning, or no weights that can be read.
    """
    if not isinstance(folder, (str, os.PathLike)) or not os.path.isdir(folder):
        raise UnlearningError(f"there is no folder {folder!r}: give the output_dir of a finished run.")
    path = Path(folder)
    if not (path / REPORT_NAME).is_file():
        raise UnlearningError(f"{folder!r} holds no {REPORT_NAME}: give the output_dir of a finished run.")
    try:
        report = UnlearningReport.load(folder)
    except (TypeError, ValueError) as error:
        raise UnlearningError(
            f"{folder!r} holds an {REPORT_NAME} that cannot be read ({error}): unlearn anew."
        ) from error
    if report.request is None:
        raise UnlearningError(f"the report in {folder!r} is of an evaluation alone: give the output_dir of a run.")
    for name in ("config.json", "preprocessor_config.json"):
        if not (path / name).is_file():
            raise UnlearningError(f"{folder!r} holds no {name}: give the output_dir of a finished run.")
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise UnlearningError(f"{folder!r} holds a config.json that cannot be read ({error}): unlearn anew.") from error
    if (config.get(LEDGER) or [None])[-1] != report.request:
        raise UnlearningError(
            f"the report in {folder!r} and its config.json are of different runs, one of which was cut off:"
            " unlearn anew."
        )
    check_weights(folder)
    return report


def weight_files(folder: str) -> list[str]:
    """The files that transformers would read the weights from, and with several parts their index.

    Raises:
        UnlearningError: none, or an index that cannot be read or names other files.
    """
    if os.path.exists(os.path.join(folder, SAFE_WEIGHTS_NAME)):
        return [SAFE_WEIGHTS_NAME]
    try:
        index = json.loads(Path(folder, SAFE_WEIGHTS_INDEX_NAME).read_text(encoding="utf-8"))
        names = sorted(set(index["weight_map"].values()))
    except FileNotFoundError:
        names = []
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UnlearningError(
            f"{folder!r} holds a {SAFE_WEIGHTS_INDEX_NAME} that cannot be read ({error!r}): unlearn anew."
        ) from error
    if not names:
        raise UnlearningError(f"{folder!r} holds no {SAFE_WEIGHTS_NAME}: give the output_dir of a finished run.")
    if strange := [name for name in names if not MODEL_FILES.fullmatch(str(name))]:
        raise UnlearningError(f"{folder!r}: its index names {strange[0]!r}, which is no part of a model: unlearn anew.")
    return [*names, SAFE_WEIGHTS_INDEX_NAME]


def check_weights(folder: str) -> None:
    """Open every file of weights.

    Raises:
        UnlearningError: one is missing, cut off or damaged.
    """
    for name in weight_files(folder):
        if name.endswith(".safetensors"):
            try:
                with safe_open(os.path.join(folder, name), framework="pt"):
                    pass
            except (OSError, SafetensorError) as error:
                raise UnlearningError(
                    f"{folder!r} holds a {name} that cannot be read ({error}): unlearn anew."
                ) from error


def copy_public(folder: str, target: str, repo_id: str, card: Mapping[str, Any] | None = None) -> None:
    """Write all that may be published into ``target``, an empty folder.

    Args:
        folder: a saved result. repo_id: where it will stand, for the card. card: of :func:`write_card`.

    Raises:
        UnlearningError: from :func:`check_result`, or a file to publish is a link.
    """
    report = public_report(check_result(folder))
    configs = [name for name in CONFIGS if os.path.exists(os.path.join(folder, name))]
    for name in sorted({*configs, *weight_files(folder), *code_files(folder)}):
        source = os.path.join(folder, name)
        if os.path.islink(source):
            raise UnlearningError(
                f"{source!r} is a link, and what it leads to may be anything: put the file itself there."
            )
        link_or_copy(source, os.path.join(target, name))
    report.save(target)
    write_card(target, report, repo_id, **(card or {}))


def code_files(folder: str) -> set[str]:
    """Of a model that brings its own code, the modules that its configs name and those that they import."""
    modules: set[str] = set()
    for name in ("config.json", "preprocessor_config.json"):
        places = json.loads(Path(folder, name).read_text(encoding="utf-8")).get("auto_map", {}).values()
        for place in (p for value in places for p in (value if isinstance(value, list) else [value]) if p):
            module = Path(folder, place.split(".")[0] + ".py")  # "user/repository--own.Model" lies elsewhere
            if module.is_file():
                modules |= {module.name, *(Path(needed).name for needed in get_relative_import_files(module))}
    return modules


def write_card(folder: str, report: UnlearningReport, repo_id: str | None, **told: Any) -> None:
    """Write the model card into a folder; ``repo_id`` is where it will stand, None where that is not known.

    Args:
        told: as in :func:`zspag_hf.report.card.model_card`, in place of what the report says.
    """
    write_whole(os.path.join(folder, CARD_NAME), str(model_card(report, model_id=repo_id, **told)).encode())


def link_or_copy(source: str, target: str) -> None:
    """A second name for a file of weights, or a copy where the two folders lie on different disks."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def full_id(repo_id: str, token: str | None) -> str:
    """``user/name`` of a repository to push to: a bare name belongs to the user whose token it is.

    Raises:
        UnlearningError: no token, or one that the Hub does not know.
    """
    with hub_errors(repo_id, "push to"):
        validate_repo_id(repo_id)
        user = HfApi(token=token).whoami()["name"]
    return repo_id if "/" in repo_id else f"{user}/{repo_id}"


def check_private(repo_id: str, wanted: bool | None, private: bool) -> None:
    """Refuse a public repository where a private one was asked for: it is private or not when it is made.

    Raises:
        UnlearningError: it is public.
    """
    if wanted and not private:
        raise UnlearningError(
            f"{repo_id!r} exists and is public, and hub_private_repo=True asks for a private one: make it private on"
            " the Hub, or give another hub_model_id."
        )


def check_same_model(config: str | None, folder: str, repo_id: str) -> None:
    """Refuse to replace a model that is no earlier result of the same one.

    Args:
        config: the file that stands in the repository, None where weights stand alone.

    Raises:
        UnlearningError: it has forgotten nothing, or came from another model.
    """
    ledgers = [
        json.loads(Path(path).read_text(encoding="utf-8")).get(LEDGER) if path else None
        for path in (config, os.path.join(folder, CONFIG_NAME))
    ]
    theirs, mine = ([one[0]["base_model"], one[0]["base_revision"]] if one else None for one in ledgers)
    if theirs is None or theirs != mine:
        raise UnlearningError(
            f"{repo_id!r} holds another model, which this push would replace: give another hub_model_id, or"
            " hub_replace=True (on the command line --replace true) if that is meant."
        )


def push_folder(
    folder: str,
    repo_id: str,
    *,
    token: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    replace: bool = False,
    commit_message: str = "Unlearn",
    card: Mapping[str, Any] | None = None,
) -> CommitInfo:
    """Publish a saved result: one commit, or none when something fails.

    May be called again after a failure; what the Hub holds already is not sent twice. Other weights that the repository
    holds are deleted by the same commit. Its earlier commits keep them: delete those, or push to a new repository.

    Args:
        folder: the ``output_dir`` of a finished run.
        repo_id: ``user/name``, or a name of one's own. Made where there is none, private where ``private`` is True.
        token: with write access; None for the one that is logged in.
        revision: a branch, made where there is none. create_pr: open a pull request in place of committing to it.
        replace: also where the main branch holds another model.
        card: of :func:`write_card`.

    Raises:
        UnlearningError: nothing to publish, no or a wrong token, no permission, or the Hub failed; nothing is published
            then.
    """
    check_result(folder)
    if create_pr and revision is not None:
        raise UnlearningError(f"a pull request goes to the main branch: leave revision={revision!r} out.")
    repo_id = full_id(repo_id, token)
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory(prefix="zspag-hf-") as public, hub_errors(repo_id, "push to"):
        copy_public(folder, public, repo_id, card)
        if not create_pr:
            api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        head = api.repo_info(repo_id, revision=revision)
        check_private(repo_id, private, head.private)
        names = sorted(file.rfilename for file in head.siblings)
        if not (replace or create_pr or revision):
            there = api.hf_hub_download(repo_id, CONFIG_NAME, revision=head.sha) if CONFIG_NAME in names else None
            if there or any(filter_repo_objects(names, allow_patterns=WEIGHTS)):
                check_same_model(there, folder, repo_id)
        added = sorted(path.relative_to(public).as_posix() for path in Path(public).rglob("*") if path.is_file())
        stale = {name for name in filter_repo_objects(names, allow_patterns=REPLACED)}
        return api.create_commit(  # upload_folder would make several commits of a large folder
            repo_id,
            [
                *(CommitOperationDelete(name) for name in sorted(stale - set(added))),
                *(CommitOperationAdd(name, os.path.join(public, name)) for name in added),
            ],
            commit_message=commit_message,
            revision=revision,
            create_pr=create_pr,
            parent_commit=head.sha,
        )
