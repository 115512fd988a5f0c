"""An index on a server of Milvus, a process of its own: by every command, gone meanwhile, with a token."""

import json
from contextlib import ExitStack
from threading import Thread

import numpy as np
import pytest
from milvus_server import free_port, milvus_server

from sfrs.models.network import save_network
from sfrs.retrieval.index import Index
from sfrs.retrieval.index.engine_store import EngineStore
from sfrs.retrieval.index.milvus import Milvus
from sfrs.retrieval.near import Near
from sfrs.runtime.errors import UserError

pytest.importorskip("milvus_lite", reason="the extra [milvus] is missing")
pytestmark = pytest.mark.slow

MILVUS = "sfrs.retrieval.index.milvus"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with milvus_server(tmp_path_factory.mktemp("server")) as (address, _):
        yield address


@pytest.fixture
def weights(tmp_path, tiny_network):
    save_network(tmp_path / "tiny.safetensors", tiny_network, {"image_size": [48, 64]})
    return tmp_path / "tiny.safetensors"


def opened(path):
    index = Index.open(path)
    index.close()
    return index


def test_the_commands_find_there_what_they_find_in_a_folder(run, place_folder, server, weights, tmp_path):
    out, folder = f"{server}/town", tmp_path / "town.index"
    for place in (out, folder):
        code, text, err = run(
            "index", place_folder, "--out", place, "--weights", weights, "--zone", "33N", "--regions"
        )
        assert code == 0 and "12 added" in text and "self-test" in text, err
    code, text, _ = run("index", place_folder, "--out", out)
    assert code == 0 and "0 added, 0 described again, 0 removed, 12 unchanged" in text
    code, text, _ = run("index", "--out", out, "--info", "--json")
    facts = json.loads(text)
    assert facts["images"] == 12 and facts["regions"] and facts["finished"] and facts["self_test"]
    queries = place_folder / "images/test/queries"
    for options in ([], ["--rerank", "regions"], ["--near", "36.1434,15.0033,150"]):
        ours, theirs = (run("locate", queries, "--index", x, "--json", *options) for x in (out, folder))
        assert ours[0] == theirs[0] == 0, ours[2]
        named = [
            [[match["file"] for match in query["matches"]] for query in json.loads(x[1])["queries"]]
            for x in (ours, theirs)
        ]
        assert named[0] == named[1] and len(named[0]) == 12
    scored = [
        run("evaluate", "--index", x, "--queries", queries, "--rerank", "regions", "--json")
        for x in (out, folder)
    ]
    ours, theirs = (json.loads(text)["recalls"] for _, text, _ in scored)
    assert ours == theirs and ours["1"] > 0, scored[0]
    near = Near.parse("36.1434,15.0033,150")
    parts = [Index.open(x, near=near) for x in (out, folder)]
    assert parts[0].files[:] == parts[1].files[:] and 0 < len(parts[0]) < 12
    parts[0].close()
    code, _, err = run("report", out, "--out", tmp_path / "page")
    assert code == 0 and (tmp_path / "page/index.html").stat().st_size > 10_000, err
    code, text, _ = run("index", "--out", out, "--remove", "@500300*", "--json")
    assert code == 0 and json.loads(text)["images"] == 11


def test_what_the_server_refuses_leaves_nothing(run, place_folder, server, weights):
    out = f"{server}/half"
    code, _, err = run("index", place_folder, "--out", out, "--weights", weights, "--kind", "float16")
    assert code == 2 and "Milvus says: " in err and "loat16" in err
    milvus = Milvus(out)
    assert not [name for name in milvus.collections if name.startswith("half")]
    milvus.close()


def test_vectors_are_asked_for_in_answers_that_servers_send(place_folder, server, weights, run, monkeypatch):
    out = f"{server}/large"
    run("index", place_folder, "--out", out, "--weights", weights, "--regions")
    store = EngineStore.open(out)
    keys, asked, get = store.pending().slots, [], store.milvus._client.get
    expected = store.descriptors(keys), store.quarters(keys)

    def counted(name, ids, **options):
        asked.append(len(ids))
        return get(name, ids, **options)

    monkeypatch.setattr(f"{MILVUS}.ANSWER", 5 * 4 * store.settings["dim"])
    monkeypatch.setattr(store.milvus._client, "get", counted)
    np.testing.assert_array_equal(store.descriptors(keys), expected[0])
    assert asked == [5, 5, 2]
    np.testing.assert_array_equal(store.quarters(keys), expected[1])
    assert asked[3:] == [1] * 12  # four quarters are as large as four descriptors
    store.close()


def test_a_server_that_goes_is_named_and_one_that_comes_back_is_waited_for(
    run, place_folder, weights, tmp_path, monkeypatch
):
    port, add, servers = free_port(), EngineStore.add, []
    out = f"milvus://127.0.0.1:{port}/town"
    command = ["index", place_folder, "--out", out, "--weights", weights, "--batch-size", 4]
    monkeypatch.setattr("sfrs.retrieval.index.build.BATCH_BYTES", 1)  # every batch is written
    with ExitStack() as running:

        def start():
            servers.append(running.enter_context(milvus_server(tmp_path / "data", port))[1])

        def kill_before_second_batch(then):
            calls = []

            def killed(store, *parts):
                calls.append(parts)
                if len(calls) == 2:
                    servers[-1].kill()
                    servers[-1].wait()
                    then()
                add(store, *parts)

            monkeypatch.setattr(EngineStore, "add", killed)

        start()
        with monkeypatch.context() as patch:
            patch.setattr(f"{MILVUS}.TIMEOUT", 2.0)
            kill_before_second_batch(lambda: None)
            code, _, err = run(*command)
        assert code == 2 and f"{out}: Milvus has not answered for 2 seconds (" in err, err
        start()
        with pytest.raises(UserError, match="not finished"):
            Index.open(out)
        kill_before_second_batch(Thread(target=start).start)
        code, text, err = run(*command)
        assert code == 0 and "8 added, 0 described again, 0 removed, 4 unchanged" in text, err
        assert len(opened(out)) == 12


def test_a_server_that_asks_for_a_token_gets_it_from_the_environment_and_nobody_sees_it(
    run, place_folder, weights, tmp_path, monkeypatch
):
    token = "anna:as-secret-as-can-be"
    with milvus_server(tmp_path / "data", token=token) as (server, _):
        command = ["index", place_folder, "--weights", weights, "--out"]
        printed = []
        for given in ("", "anna:guessed"):
            monkeypatch.setenv("SFRS_MILVUS_TOKEN", given)
            printed.append(run(*command, f"{server}/town"))
            told = "the server refuses SFRS_MILVUS_TOKEN in the environment (auth check failure, please check"
            assert printed[-1][0] == 2 and told in printed[-1][2]
        monkeypatch.setenv("SFRS_MILVUS_TOKEN", token)
        printed.append(run(*command, f"{server}/town"))
        assert printed[-1][0] == 0 and "12 added" in printed[-1][1]
        printed.append(run(*command, f"{server}/town".replace("//", f"//{token}@")))
        assert printed[-1][0] == 2 and "USER:PASSWORD in SFRS_MILVUS_TOKEN" in printed[-1][2]
    assert "secret" not in str(printed) and "guessed" not in str(printed)
