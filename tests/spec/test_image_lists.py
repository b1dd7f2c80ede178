"""Lists of images: parts and classes by files, and one sentence for what is wrong in them."""

import pytest

from qat.errors import DataError, SpecError
from qat.spec.data import DataSpec
from qat.spec.data_files import check_data
from qat.spec.image_lists import are_listed, classes_of, image_lists

IMAGES = ("cat/1.jpg", "cat/2.jpg", "cat/old/3.jpg", "dog/1.jpg", "dog/2.jpg", "dog/a, b.jpg")
TABLE = "path,label\ncat/1.jpg,tom\ncat/2.jpg,tom\ndog/1.jpg,rex\ndog/2.jpg,rex\n"


@pytest.fixture
def root(tmp_path):
    for name in IMAGES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def write(root, **texts):
    """Files at the root, named as their options, and the options."""
    for key, text in texts.items():
        (root / key).write_bytes(text.encode("utf-8", "surrogateescape"))
    return DataSpec(name="image_folder", root=str(root), **{key: key for key in texts})


def found(root, **texts):
    options = write(root, **texts)
    check_data(options)
    return image_lists(options, root)


def test_folders_are_no_lists():
    assert not are_listed(DataSpec(name="image_folder", root="x"))


def test_lists_name_the_parts_and_first_folders_the_classes(root):
    train = "cat/1.jpg\n\n./cat/old/3.jpg \r\ndog/1.jpg\n"
    parts = found(root, train_list=train, test_list=f"{root}/dog/2.jpg")
    assert parts == {
        "train": {"cat/1.jpg": "cat", "cat/old/3.jpg": "cat", "dog/1.jpg": "dog"},
        "test": {"dog/2.jpg": "dog"},
    }
    assert classes_of(parts) == ("cat", "dog")


@pytest.mark.parametrize("start", ["", "\N{BYTE ORDER MARK}"])
def test_a_table_names_classes_whatever_the_folders(root, start):
    parts = found(root, labels=f'{start}path, label\n{TABLE[11:]}\n"dog/a, b.jpg",tom\n')
    assert list(parts) == ["train"]
    assert parts["train"]["dog/a, b.jpg"] == "tom"
    assert classes_of(parts) == ("rex", "tom")


def test_a_table_may_name_the_parts(root):
    text = "path,label,part\ncat/1.jpg,1,train\ndog/1.jpg,10,train\ndog/2.jpg,1,val\n"
    parts = found(root, labels=text + "cat/2.jpg,10,validation\n")
    assert parts["val"] == {"dog/2.jpg": "1", "cat/2.jpg": "10"}
    assert set(parts) == {"train", "val"}


def test_rows_that_no_list_has_are_for_training(root):
    parts = found(root, labels=TABLE, test_list="dog/2.jpg")
    assert parts["test"] == {"dog/2.jpg": "rex"}
    assert set(parts["train"]) == {"cat/1.jpg", "cat/2.jpg", "dog/1.jpg"}
    parts = found(root, labels=TABLE, train_list="dog/1.jpg\ncat/1.jpg")
    assert parts == {"train": {"dog/1.jpg": "rex", "cat/1.jpg": "tom"}}


def test_names_that_are_no_text_are_found(root):
    name = b"cat/\xff.jpg".decode("utf-8", "surrogateescape")
    (root / name).touch()
    assert name in found(root, train_list=f"{name}\ndog/1.jpg")["train"]


PARTS = "path,label,part\n"
BOTH = "cat/1.jpg\ndog/1.jpg"


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        ({"labels": "file,label\n"}, r"must begin with the line path,label or .*'file,label'"),
        ({"labels": ""}, r"must begin with the line path,label .*; got ''"),
        ({"labels": "path;label\n"}, "got 'path;label'"),
        ({"labels": "path,label\n\n"}, "names no image; add rows"),
        ({"labels": TABLE + "dog/2.jpg,tom\n"}, r"line 6 names dog/2\.jpg again; leave one"),
        ({"labels": TABLE + "./dog/2.jpg,tom\n"}, r"line 6 names dog/2\.jpg again; leave one"),
        ({"labels": TABLE + "dog/a.jpg, \n"}, r"line 6: the label of dog/a\.jpg is empty"),
        ({"labels": TABLE + 'dog/a.jpg,"a\nb"\n'}, "is empty or cannot be printed"),
        ({"labels": TABLE + "dog/a, b.jpg,rex\n"}, r'line 6 has 3 columns, the header 2; put .*"'),
        ({"labels": TABLE + "../x.jpg,rex\n"}, r"line 6: \.\./x\.jpg is not below data\.root="),
        ({"labels": TABLE + "/etc/x.jpg,rex\n"}, r"/etc/x\.jpg is not below data\.root="),
        ({"labels": TABLE + "dog/..,rex\n"}, r"dog/\.\. is not below data\.root="),
        ({"labels": PARTS + "cat/1.jpg,tom,dev\n"}, "part must be train, val or test; got 'dev'"),
        ({"labels": PARTS + "cat/1.jpg,tom,\n"}, "part must be train, val or test; got ''"),
        ({"labels": PARTS + "cat/1.jpg,tom,test\n"}, "leave no image to train on"),
        ({"labels": TABLE, "val_list": "dog/9.jpg"}, r"val_list names dog/9\.jpg, which data\.lab"),
        ({"labels": TABLE, "test_list": "dog/2.jpg\ndog/1.jpg"}, "are of one class, 'tom'"),
        ({"train_list": "cat/1.jpg\ncat/2.jpg"}, "are of one class, 'cat'; list others"),
        ({"train_list": "1.jpg\n"}, r"1\.jpg lies in no folder that would be its class; give"),
        ({"train_list": "\n"}, "names no image; write a path on each line"),
        ({"train_list": BOTH + "\ncat/1.jpg"}, r"train_list line 3 names cat/1\.jpg again"),
        ({"train_list": BOTH, "test_list": "dog/1.jpg"}, r"dog/1\.jpg is listed for train and f"),
        ({"train_list": BOTH, "val_list": "cow/1.jpg"}, r"is of the class 'cow', of which no im"),
        ({"train_list": BOTH + "\ncat/8.jpg\ncat/9.jpg"}, r"^2 of 4 listed .*: cat/8\.jpg, c"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(root, texts, sentence):
    with pytest.raises(DataError, match=sentence) as caught:
        found(root, **texts)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        ({"val_list": "dog/1.jpg"}, "need data.train_list, or the images of data.labels=FILE.csv"),
        ({"labels": "path,label,part\ncat/1.jpg,a,train", "test_list": "cat/1.jpg"}, "column part"),
    ],
)
def test_what_does_not_go_together(root, texts, sentence):
    with pytest.raises(SpecError, match=sentence):
        found(root, **texts)


def test_a_file_that_is_not_there(root):
    options = DataSpec(name="image_folder", root=str(root), labels="a.csv")
    with pytest.raises(DataError, match=rf"data\.labels=a\.csv: there is no file {root}/a\.csv; g"):
        check_data(options)


def test_lists_are_for_images_of_ones_own():
    with pytest.raises(SpecError, match=r"data\.labels is for data=image_folder; got .*=digits"):
        DataSpec(labels="a.csv")
