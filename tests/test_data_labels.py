"""Label names and ids: of the request, of the data set and of the model."""

import pandas
import pytest
from datasets import Dataset, Value
from tiny import NAMES, images
from transformers import ViTConfig

from zspag_hf.data.labels import (
    class_names,
    data_labels,
    label_ids,
    model_labels,
    reconcile_labels,
    resolve_classes,
    rows_of_classes,
    with_named_labels,
)
from zspag_hf.data.names import written
from zspag_hf.errors import UnlearningError


def test_classes_are_found_by_name_synonym_case_or_id():
    names = ["background", "goldfish, Carassius auratus", "Great White Shark", "7"]
    assert resolve_classes(["carassius AURATUS", "great white shark"], names) == [1, 2]
    assert resolve_classes([2, "1"], names) == [1, 2]
    assert resolve_classes(["7"], [str(i) for i in range(9, -1, -1)]) == [2], "a name comes before an id"


def test_an_unknown_label_lists_the_known_and_suggests_the_nearest():
    with pytest.raises(UnlearningError, match=r"no label 'cet'. Did you mean 'cat'.*'ant', 'bee', 'cat'"):
        resolve_classes(["cet"], NAMES)


def test_an_ambiguous_synonym_is_refused():
    with pytest.raises(UnlearningError, match="ambiguous"):
        resolve_classes(["crane"], ["crane, bird", "crane, machine"])


@pytest.mark.parametrize(
    "requested, message", [(NAMES, "all 5 classes"), ([], "no class to forget"), (None, "no class")]
)
def test_none_or_all_classes_are_refused(requested, message):
    with pytest.raises(UnlearningError, match=message):
        resolve_classes(requested, NAMES)


def test_labels_are_reconciled_by_name_in_any_order():
    assert reconcile_labels(["Dog", "ant"], NAMES) == [3, 0]
    assert reconcile_labels(None, NAMES) == [0, 1, 2, 3, 4]
    assert reconcile_labels(["x", "y"], ["LABEL_0", "LABEL_1"]) == [0, 1], "a model saved without names"


def test_labels_that_do_not_fit_show_both_sides_and_the_mend():
    with pytest.raises(UnlearningError, match=r"'cow'.*'ant', 'cow'.*'bee'.*label_offset"):
        reconcile_labels(["ant", "cow"], NAMES)
    with pytest.raises(UnlearningError, match="not one of the model's"):
        reconcile_labels(["x", "y", "z"], ["LABEL_0", "LABEL_1"])


def test_offset_and_mapping():
    assert reconcile_labels(["a", "b"], ["background", "a1", "b1"], offset=1) == [1, 2]
    assert reconcile_labels(["a", "b"], NAMES, mapping={"a": "dog", "b": 0}) == [3, 0]
    with pytest.raises(UnlearningError, match="lacks the label 'b'"):
        reconcile_labels(["a", "b"], NAMES, mapping={"a": "dog"})
    with pytest.raises(UnlearningError, match="label_offset 4 sends"):
        reconcile_labels(["a", "b"], NAMES, offset=4)
    with pytest.raises(UnlearningError, match="give one"):
        reconcile_labels(["a"], NAMES, offset=1, mapping={"a": 0})


def test_a_list_with_a_name_twice_fits_itself_and_no_other():
    assert reconcile_labels(["crane", "bee", "Crane"], ["crane", "bee", "crane"]) == [0, 1, 2]
    with pytest.raises(UnlearningError, match="label 'Cat' stands twice"):
        reconcile_labels(["cat", "ant", "Cat"], NAMES)


def test_a_missing_column_is_named():
    with pytest.raises(UnlearningError, match=r"no label column 'fine_label' among \['image', 'label'\]"):
        class_names(images([2]), "fine_label")


def test_integer_labels_outside_the_model_are_refused():
    data = images([0, 1]).cast_column("label", Value("int64")).map(lambda row: {"label": row["label"] + 7})
    with pytest.raises(UnlearningError, match="label id 7 is outside the model's 5"):
        label_ids(data, "label", range(5), 5)
    with pytest.raises(UnlearningError, match="label id 7 becomes 5, outside the model's 5"):
        label_ids(data, "label", [*range(-2, 7)], 5)


def test_rows_of_classes_go_through_the_mapping():
    assert rows_of_classes(images([0, 1, 2, 1]), "label", [4, 2, 0], [2]) == [1, 3]


class TestNumbersAsNames:
    """Folders 1 to 12 come as 1, 10, 11, 12, 2, ... and a model without names has LABEL_0 to LABEL_11."""

    FOLDERS = sorted(str(i) for i in range(1, 13))
    UNNAMED = [f"LABEL_{i}" for i in range(12)]

    @pytest.fixture
    def called(self):
        return data_labels(images([0], names=self.FOLDERS), "label", self.UNNAMED)

    def test_the_folder_of_that_name_is_meant(self, called):
        assert self.FOLDERS[resolve_classes(["10"], self.UNNAMED, called)[0]] == "10"
        assert resolve_classes(["2", "label_0"], self.UNNAMED, called) == [0, self.FOLDERS.index("2")]

    def test_an_id_that_is_no_label_of_the_data_stays_an_id(self, called):
        assert resolve_classes(["0", 0], self.UNNAMED, called) == [0]

    def test_a_number_that_is_both_is_refused(self, called):
        with pytest.raises(UnlearningError, match=r"two readings, 'LABEL_1' by the data's.*'LABEL_10' by the model's"):
            resolve_classes([10], self.UNNAMED, called)

    @pytest.mark.parametrize("count", [11, 12, 100])
    def test_numbers_from_0_are_places_or_themselves(self, count):
        folders, unnamed = sorted(map(str, range(count))), [f"LABEL_{i}" for i in range(count)]
        with pytest.raises(UnlearningError, match=r"'10' has two readings, 'LABEL_2'.*'LABEL_10'.*label_offset=0"):
            reconcile_labels(folders, unnamed)
        assert reconcile_labels(folders, unnamed, offset=0) == [*range(count)]

    def test_numbers_in_order_have_one_reading(self):
        for folders in (["0", "1", "2"], ["00", "01", "02"], [f"{i:02}" for i in range(30)]):
            unnamed = [f"LABEL_{i}" for i in range(len(folders))]
            assert reconcile_labels(folders, unnamed) == [*range(len(folders))]

    def test_a_name_that_data_and_model_give_to_other_classes(self):
        called = data_labels(images([0], names=["b", "c"]), "label", ["a", "b", "c"], offset=0)
        with pytest.raises(UnlearningError, match=r"the class 'b' to forget has two readings, 'a' by.* and 'b' by"):
            resolve_classes(["b"], ["a", "b", "c"], called)
        assert resolve_classes(["a"], ["a", "b", "c"], called) == [0]


NFC, NFD = "caf\u00e9", "cafe\u0301"


class TestNamesThatLookAlike:
    def test_accents_are_compared_and_not_their_coding(self):
        assert reconcile_labels([NFD, "b"], [NFC, "a", "b"]) == [0, 2]
        assert reconcile_labels([NFC.upper(), "b"], [NFD, "a", "b"]) == [0, 2]
        assert resolve_classes([NFD], [NFC, "b", "c"]) == [0] == resolve_classes([NFC], [NFD, "b", "c"])
        assert resolve_classes([NFD], ["x, " + NFC, "b", "c"]) == [0]
        assert reconcile_labels([NFD], ["a", "b"], mapping={NFC: "b"}) == [1]

    def test_blanks_around_a_name_count_for_nothing(self):
        names = ["c, d ", " e", "f\u00a0"]
        assert resolve_classes(["c, d "], names) == resolve_classes(["c, d"], names) == [0]
        assert resolve_classes(["e ", "f"], names) == [1, 2]
        assert reconcile_labels(["f", "e"], names) == [2, 1]

    def test_the_exact_name_comes_first(self):
        names = ["Cat", "cat", NFC, NFD]
        assert [resolve_classes([name], names) for name in names] == [[0], [1], [2], [3]]
        assert reconcile_labels(["cat", NFD], names) == [1, 3]

    def test_a_name_of_several_classes_is_refused(self):
        with pytest.raises(UnlearningError, match="'CAT' names several of the model's classes"):
            reconcile_labels(["CAT"], ["cat", "Cat", "dog"])
        with pytest.raises(UnlearningError, match="'CAT' is ambiguous"):
            resolve_classes(["CAT"], ["cat", "Cat", "dog"])

    @pytest.mark.parametrize(
        "other, told",
        [
            ("c\u0430t", "'c\\u0430t'"),  # Cyrillic a
            ("\u0441\u0430\u0440", "'\\u0441\\u0430\\u0440'"),  # Cyrillic alone, like car
            ("ca\u200bt", "'ca\\u200bt'"),
            ("\uff43\uff41\uff54", "'\\uff43\\uff41\\uff54'"),
            ("cat\u2013dog", "'cat\\u2013dog'"),
            ("o\u2019x", "'o\\u2019x'"),
            ("c\u00a0t", "'c\\xa0t'"),
            ("ca\u202et", "'ca\\u202et'"),
            ("x\u0301", "'x\\u0301'"),
        ],
    )
    def test_a_look_alike_is_shown_by_its_code_points(self, other, told):
        for data, names in ((["bee", other], NAMES), (NAMES, ["ant", "bee", other])):
            with pytest.raises(UnlearningError) as error:
                reconcile_labels(data, names)
            assert told in str(error.value) and other not in str(error.value)
        with pytest.raises(UnlearningError) as error:
            resolve_classes([other], NAMES)
        assert told in str(error.value)

    @pytest.mark.parametrize(
        "name",
        [NFC, "\u732b", "\u0436\u0443\u043a", "\u092c\u093f\u0932\u094d\u0932\u0940", "\u03ba\u03cd\u03c9\u03bd"],
    )
    def test_an_honest_name_is_shown_as_it_is(self, name):
        assert written(name) == repr(name)

    def test_a_model_without_any_name(self):
        with pytest.raises(UnlearningError, match="id2label is empty"):
            model_labels(ViTConfig(id2label={}))

    @pytest.mark.parametrize("digits", ["\u00b2", "\uff12", "2.0", "9" * 5000, "-1", "1e1"])
    def test_what_is_no_number_is_no_id(self, digits):
        with pytest.raises(UnlearningError, match="no label"):
            resolve_classes([digits], NAMES)


class TestLabelsAsTexts:
    def splits(self, train, test):
        return [
            Dataset.from_dict({"label": train, "x": [*range(len(train))]}),
            Dataset.from_dict({"label": test, "x": [0]}),
        ]

    def test_they_are_named_alike_in_all_splits(self):
        train, test = with_named_labels(self.splits(["dog", "cat", "dog"], ["ant"]), "label")
        assert train.features["label"].names == test.features["label"].names == ["ant", "cat", "dog"]
        assert train["label"][:] == [2, 1, 2] and test["label"][:] == [0] and train.column_names == ["label", "x"]

    def test_one_name_in_several_spellings_is_one(self):
        train, test = with_named_labels(self.splits([NFC, NFD, " CAF\u00c9", "b"], [NFD]), "label")
        assert len(train.features["label"].names) == 2
        assert len(set(train["label"][:3])) == 1 and test["label"][0] == train["label"][0]

    def test_what_is_empty_is_no_label(self):
        train, _ = with_named_labels(self.splits(["cat", None, ""], ["cat"]), "label")
        assert train["label"][:] == [0, None, None]

    def test_large_texts_and_categories(self, tmp_path):
        pandas.DataFrame({"label": pandas.Categorical(["b", "a"])}).to_parquet(tmp_path / "a.parquet")
        data = Dataset.from_parquet(str(tmp_path / "a.parquet"), cache_dir=str(tmp_path))
        assert with_named_labels([data], "label")[0]["label"][:] == [1, 0]
        large = data.cast_column("label", Value("large_string"))
        assert with_named_labels([large], "label")[0]["label"][:] == [1, 0]

    def test_ids_with_a_gap(self, tmp_path):
        pandas.DataFrame({"label": [1, None, 2]}).to_parquet(tmp_path / "a.parquet")
        data = Dataset.from_parquet(str(tmp_path / "a.parquet"), cache_dir=str(tmp_path))
        assert data.features["label"].dtype == "float64"
        named = with_named_labels([data], "label")[0]
        assert named["label"][:] == [1, None, 2] and named.features["label"].dtype == "int64"

    @pytest.mark.parametrize("odd", [0.5, float("inf")])
    def test_other_numbers_with_a_point_stay_and_are_refused(self, odd):
        data = with_named_labels([Dataset.from_dict({"label": [1.0, odd]})], "label")[0]
        with pytest.raises(UnlearningError, match="holds float64"):
            class_names(data, "label")

    def test_numbers_and_other_columns_stay(self):
        data = images([1, 2])
        assert with_named_labels([data], "label") == [data] and with_named_labels([data], "none") == [data]
