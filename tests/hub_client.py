"""What a client of the Hub tries, by id, and what each attempt came to. Run as a script it does so against the Hub at
``HF_ENDPOINT``, and once more when that has gone; imported, in a process that is offline.

    python hub_client.py CACHE KNOWN     # a folder; as JSON a commit of user/model and tokens: commit, read, stranger
"""

import glob
import json
import os
import socket
import sys
import time
import urllib.request
from urllib.parse import urlsplit

import torch
from huggingface_hub.utils import close_session

from zspag_hf.data.sources import Pictures
from zspag_hf.errors import UnlearningError
from zspag_hf.hub.datasets import load_split
from zspag_hf.hub.models import HubOptions, inherited_card, load_classifier, load_processor, source_of
from zspag_hf.pipeline.classifier import PixelClassifier


class Client:
    """Attempts of one client.

    Attributes:
        cache: the folder of all that it loads. outcome: name of an attempt -> what it returned, or its error's text.
    """

    def __init__(self, cache: str):
        self.cache, self.outcome = cache, {}

    def attempt(self, name, call, *arguments, **options):
        try:
            self.outcome[name] = call(*arguments, **options)
        except UnlearningError as error:
            self.outcome[name] = str(error)

    def hub(self, **options):
        return HubOptions(cache_dir=self.cache, **options)

    def load(self, id, **options):
        """Logits of one image, id and commit of the model, and the name that it bears."""
        model, processor = load_classifier(id, hub=self.hub(**options))
        pixels = torch.linspace(0, 1, 192).view(1, 3, 8, 8)
        return [PixelClassifier(model, processor).predict(pixels)[0].tolist(), *source_of(model), model.name_or_path]

    def data(self, id, split="train", config_name=None, **options):
        """Number of rows, label names, size of the first image."""
        rows = load_split(id, split, config_name=config_name, hub=self.hub(**options))
        return [len(rows), rows.features["label"].names, list(Pictures(rows, "image")[0].size)]


def online(cache, known):
    client = Client(cache)
    attempt, load, data, hub, outcome = client.attempt, client.load, client.data, client.hub, client.outcome
    attempt("model", load, "user/model")
    for revision in ("old", "v1", known["commit"], "none"):
        attempt("revision " + revision, load, "user/model", revision=revision)
    tokens = {"": None, " stranger": known["stranger"], " owner": known["read"], " wrong": "hf_wrong"}
    for who in tokens:
        for kind in ("private", "gated"):
            attempt(kind + who, load, "user/" + kind, token=tokens[who])
    for name in ("none", "empty", "pickled", "adapter", "own", "sharded", "down", "busy", "cardless"):
        attempt(name, load, "user/" + name)
    outcome["own, unread"] = os.path.exists(os.environ["MARK"])
    attempt("own, trusted", lambda: load("user/own", trust_remote_code=True)[0])
    attempt("pickled, allowed", load, "user/pickled", allow_pickled_weights=True)
    attempt("cut", load, "user/cut")
    outcome["cut, left"] = glob.glob(cache + "/models--user--cut/snapshots/*/model.safetensors")
    attempt("cut, again", load, "user/cut")
    attempt("processor", lambda: type(load_processor("user/half", hub())).__name__)
    for name in ("model", "cardless", "none"):
        attempt("card " + name, inherited_card, "user/" + name, hub())

    attempt("data old", data, "user/data", revision="old")
    attempt("data", data, "user/data")
    attempt("data test", data, "user/data", "test")
    for name in ("pictures", "trains"):
        attempt(f"data {name}", data, f"user/{name}")
        attempt(f"data {name} test", data, f"user/{name}", "test")
    for name in ("bare", "local", "reads"):
        attempt(f"data {name}", data, f"user/{name}")
    attempt("data split", data, "user/lazy", "validation")
    attempt("data configs", data, "user/configs")
    attempt("data config", data, "user/configs", config_name="small")
    attempt("data wrong config", data, "user/configs", config_name="huge")
    attempt("data private", data, "user/secret")
    attempt("data private, owner", data, "user/secret", token=known["read"])
    for name in ("none", "gated", "script", "down", "broken"):
        attempt("data " + name, data, "user/" + name)
    attempt("data revision", data, "user/data", revision="none")
    return outcome


def afterwards(cache):
    """With the cache that :func:`online` filled, and no Hub."""
    client = Client(cache)
    attempt, load, data, hub = client.attempt, client.load, client.data, client.hub
    attempt("model", load, "user/model")
    attempt("tag", load, "user/model", revision="v1")
    attempt("revision", load, "user/model", revision="never-seen")
    attempt("unknown", load, "user/unknown")
    attempt("half", load, "user/half")
    attempt("card", inherited_card, "user/model", hub())
    attempt("data", data, "user/data")
    attempt("data old", data, "user/data", revision="old")
    attempt("data pictures", data, "user/pictures")
    attempt("data unknown", data, "user/unknown")
    return client.outcome


def cut_off():
    """Stop the loopback Hub, and wait until nobody is at its address."""
    close_session()
    urllib.request.urlopen(os.environ["HF_ENDPOINT"] + "/stop").close()
    place = urlsplit(os.environ["HF_ENDPOINT"])
    for _ in range(10_000):
        try:
            socket.create_connection((place.hostname, place.port)).close()
        except ConnectionRefusedError:
            return
    raise TimeoutError("the Hub did not stop")


if __name__ == "__main__":
    time.sleep = lambda seconds: None  # waits between two tries are not what is tested
    outcomes = [online(sys.argv[1], json.loads(sys.argv[2]))]
    cut_off()
    print(json.dumps([*outcomes, afterwards(sys.argv[1])]))
