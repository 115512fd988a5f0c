"""``sfrs data check`` on data sets with one thing wrong at a time."""

import json
import shutil

import pytest
from pictures import picture
from PIL import Image
from published_sets import write_gsv_city, write_msls_city, write_pittsburgh, write_tokyo247, write_tokyo_tm

RULES = ("--tuple-negatives", "3")


def told(run, *arguments):
    code, out, err = run("data", "check", *arguments, "--json")
    assert code in (0, 1), err
    return code, json.loads(out)


def texts(split):
    return [(finding["stops"], finding["text"]) for finding in split["findings"]]


def test_a_sound_data_set_is_counted(run, tmp_path):
    for first, split in enumerate(("train", "val")):
        write_pittsburgh(tmp_path, split, first=100 * first)
    code, result = told(run, tmp_path, *RULES)
    assert code == 0 and result["ok"] and result["format"] == "NetVLAD .mat"
    train, val = result["splits"]
    assert (train["database"], train["places"], train["queries"], train["radius"]) == (24, 8, 8, 10.0)
    assert (val["split"], val["radius"], val["median_positives"]) == ("val", 25.0, 3.0)
    assert train["findings"] == val["findings"] == []
    code, out, err = run("data", "check", tmp_path, *RULES)
    assert code == 0 and "Nothing found at which" in out and "25 m" in out and "24" in out
    assert "images of train" in err


def test_every_format_is_checked(run, tmp_path, place_folder):
    write_tokyo247(tmp_path / "tokyo")
    write_tokyo_tm(tmp_path / "tm", "train")
    write_msls_city(tmp_path / "msls", "cph")
    write_gsv_city(tmp_path / "gsv", "Boston", 42.35, -71.06, [1, 2, 3, 20, 40])
    manifest = place_folder.parent / "town.csv"
    rows = ["file,role,easting,northing"]
    for role in ("database", "queries"):
        for file in sorted((place_folder / "images/test" / role).iterdir()):
            rows.append(f"{file},{role},{file.name.split('@')[1]},4000000")
    manifest.write_text("\n".join(rows))
    expected = {
        "tokyo": ("NetVLAD .mat", ["test"]),
        "tm": ("NetVLAD .mat", ["train"]),
        "msls": ("MSLS", ["val"]),
        "gsv": ("GSV-Cities", ["train", "val"]),
        "town": ("@ folder", ["test"]),
        "town.csv": ("CSV manifest", ["any"]),
    }
    for name, (kind, splits) in expected.items():
        code, result = told(run, tmp_path / name, *RULES)
        assert code == 0, result
        assert (result["format"], [split["split"] for split in result["splits"]]) == (kind, splits)
        assert all(split["queries"] and split["median_positives"] for split in result["splits"])


def test_missing_and_broken_files_are_counted_and_named(run, tmp_path):
    mat = write_pittsburgh(tmp_path, "val")
    (tmp_path / "images/000/000003_pitch1_yaw2.jpg").unlink()
    (tmp_path / "queries_real/000/000005_pitch1_yaw1.jpg").write_text("no picture")
    code, result = told(run, mat, "--split", "val")
    (val,) = result["splits"]
    assert code == 1 and (val["missing"], val["unreadable"]) == (1, 1)
    assert [finding["files"][0].rpartition("/")[2] for finding in val["findings"]] == [
        "000003_pitch1_yaw2.jpg",
        "000005_pitch1_yaw1.jpg",
    ]
    code, out, _ = run("data", "check", mat)
    assert code == 1 and "Stops val: 1 image is listed but not there" in out


def test_a_name_that_no_file_can_have_is_missing(run, tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.jpg")
    name = "x" * 300 + ".jpg"
    rows = ["file,split,role,easting,northing", "a.jpg,test,query,0,0", f"{name},test,database,1,0"]
    (tmp_path / "set.csv").write_text("\n".join(rows))
    code, result = told(run, tmp_path / "set.csv", "--split", "test")
    assert code == 1 and result["splits"][0]["missing"] == 1


def test_cut_off_images_are_found_by_decoding(run, place_folder):
    file = sorted((place_folder / "images/test/database").iterdir())[3]
    file.write_bytes(file.read_bytes()[:-200])
    assert told(run, place_folder)[0] == 0
    code, result = told(run, place_folder, "--decode")
    assert code == 1 and result["splits"][0]["unreadable"] == 1
    assert file.name in texts(result["splits"][0])[0][1]


def test_coordinates_in_degrees_stop(run, tmp_path):
    for role in ("database", "queries"):
        folder = tmp_path / "town/images/test" / role
        folder.mkdir(parents=True)
        for i in range(3):
            picture(i).save(folder / f"@{13.19 + i / 10000:.4f}@55.7@{role}@.jpg")
    code, result = told(run, tmp_path / "town")
    assert code == 1 and any(
        "look like degrees" in text for stops, text in texts(result["splits"][0]) if stops
    )


def test_queries_without_a_positive_are_counted_and_stop_if_all_are(run, place_folder):
    queries = sorted((place_folder / "images/test/queries").iterdir())
    queries[0].rename(queries[0].with_name("@900000@4000000@far@.jpg"))
    code, result = told(run, place_folder)
    (test,) = result["splits"]
    assert code == 0 and test["without_positive"] == 1
    assert [(stops, "1 query is more than 1 km" in text) for stops, text in texts(test)] == [(False, True)]
    code, result = told(run, place_folder, "--negative-radius", "1", "--positive-radius", "1")
    assert (
        code == 1 and "none of the 12 queries has a positive within 1 m" in texts(result["splits"][0])[0][1]
    )


def test_a_training_split_without_enough_negatives_stops(run, tmp_path):
    write_pittsburgh(tmp_path, "train", spots=3)
    code, result = told(run, tmp_path)
    assert (
        code == 1
        and "only 6 database images beyond 25 m, but a tuple has 10" in texts(result["splits"][0])[0][1]
    )
    assert told(run, tmp_path, "--tuple-negatives", "6")[0] == 0


def test_duplicates_and_leaks_are_noted(run, tmp_path):
    for scene in range(3):
        picture(scene).save(tmp_path / f"{scene}.png")
    rows = [f"{i}.png,database,{40 * i},0,{split}" for i in (0, 1, 2) for split in ("train", "test")]
    rows += [f"{i}.png,query,{40 * i},1,{split}" for i in (0, 1) for split in ("train", "test")]
    rows += ["2.png,database,80,0,test"]
    manifest = tmp_path / "town.csv"
    manifest.write_text("file,role,easting,northing,split\n" + "\n".join(rows))
    code, result = told(run, manifest, "--tuple-negatives", "2")
    assert code == 0
    train, test = (" ".join(text for _, text in texts(split)) for split in result["splits"])
    assert "1 image is listed in the database more than once" in test and "more than once" not in train
    assert "2 queries are images of the database too" in test
    assert "2 queries are within 25 m of images of the split train" in test


def test_every_split_is_compared_with_the_training_split(run, place_folder):
    shutil.copytree(place_folder / "images/test", place_folder / "images/train")
    _, result = told(run, place_folder, *RULES)
    train, test = result["splits"]  # though test comes before train in the alphabet
    assert (train["split"], test["split"]) == ("train", "test")
    assert "12 queries are within 25 m of images of the split train" in " ".join(t for _, t in texts(test))


def test_a_split_that_cannot_be_read_stops_and_the_others_are_checked(run, tmp_path):
    write_pittsburgh(tmp_path, "val")
    (tmp_path / "datasets/pitts30k_test.mat").write_text("no matlab")
    code, result = told(run, tmp_path)
    val, test = result["splits"]
    assert code == 1 and val["ok"] and "cannot be read" in texts(test)[0][1]
    code, out, _ = run("data", "check", tmp_path, "--split", "train")
    assert code == 1 and "no split train, it has val, test" in out


def test_what_is_no_data_set_is_told_in_words(run, tmp_path):
    code, out, err = run("data", "check", tmp_path / "nowhere")
    assert code == 2 and "there is no such file or folder" in err and "Traceback" not in err + out
    code, _, err = run("data", "check", tmp_path, "--negative-radius", "5")
    assert code == 2 and "negative_radius" in err


@pytest.mark.parametrize("arguments", [("data", "--help"), ("data", "check", "--help")])
def test_help_describes_the_check(run, arguments):
    code, out, _ = run(*arguments)
    assert code == 0 and "check" in out


def test_real_photographs_are_sound(run, shared_places):
    for name in ("lund", "tower", "corridor"):
        code, result = told(run, shared_places / name, "--decode")
        assert code == 0, result
        assert all(split["missing"] == split["unreadable"] == 0 for split in result["splits"])
