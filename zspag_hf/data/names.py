"""Names of classes: which are the same, and how one is written so that it can be told from another."""

import unicodedata
from collections.abc import Sequence

SCRIPTS = {"LATIN", "GREEK", "CYRILLIC", "ARMENIAN"}  # whose letters look alike
TWINS = frozenset("аеорсухіјѕһԁԛԝАВЕКМНОРСТУХІЈЅοανρυικτΑΒΕΖΗΙΚΜΝΟΡΤΥΧ")


def composed(name: str) -> str:
    """A name with its accents in one form: folders on macOS have them apart."""
    return unicodedata.normalize("NFC", name)


def comparable(name: str) -> str:
    """What two names of one class share: regardless of case, of blanks around them, and of how accents are coded."""
    return composed(composed(name).strip().casefold())


class Lookup:
    """Names by what they share: the exact name first, then any that is :func:`comparable`."""

    def __init__(self, names: Sequence[str]):
        self.exact, self.alike, self.parts = (dict[str, list[int]]() for _ in range(3))
        for i, name in enumerate(names):
            self.exact.setdefault(name, []).append(i)
            self.alike.setdefault(comparable(name), []).append(i)
            for part in {*map(comparable, name.split(","))}:
                self.parts.setdefault(part, []).append(i)

    def ids(self, name: str) -> list[int]:
        """The ids of a name, several where it stands for several classes."""
        return self.exact.get(name) or self.alike.get(comparable(name), [])

    def synonyms(self, name: str) -> list[int]:
        """The ids of the names of which it is one of the parts between commas."""
        return self.parts.get(comparable(name), [])


def written(name: str) -> str:
    """A name in quotes; by code points, '\\u0441at', where it may look like another: accents apart, letters of two
    scripts or with twins in another, and signs that are not ASCII."""
    if name.isascii():
        return repr(name)
    letters = [c for c in name if c.isalpha()]
    words = {unicodedata.name(c, "?").split()[0] for c in letters}
    signs = [c for c in name if not c.isascii() and not c.isalpha()]
    odd = any(unicodedata.category(c)[0] != "M" or unicodedata.name(c).startswith("COMBINING") for c in signs)
    mixed = len(words & SCRIPTS) > 1 or {"FULLWIDTH", "MATHEMATICAL"} & words
    return ascii(name) if odd or mixed or name != composed(name) or TWINS.issuperset(letters) else repr(name)


def shown(names: Sequence[str], most: int = 30) -> str:
    """Names for an error message, cut after ``most``."""
    return ", ".join(map(written, names[:most])) + (f", ... ({len(names) - most} more)" if len(names) > most else "")
