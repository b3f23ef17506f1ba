"""Label names and ids: of the request, of the data set and of the model."""

import pytest
from datasets import Value
from tiny import NAMES, images

from zspag_hf.data.labels import (
    class_names,
    data_labels,
    label_ids,
    reconcile_labels,
    resolve_classes,
    rows_of_classes,
)
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
