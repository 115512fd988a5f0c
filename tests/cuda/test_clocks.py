"""Machine code is read, walked through and counted as its stalls, scoreboards and barriers say."""

import struct

import census
import clocks
import pytest
import sass
from walk import BARRIER, BRANCH, LATENCY, TENSOR, Launch, Lost, Program, Walk

pytestmark = pytest.mark.slow


def kernel(*lines: tuple) -> sass.Kernel:
    """Of (text, stall, scoreboard set, scoreboards waited for); a text that ends with a colon is a label."""
    text, pc = [".text.k:"], 0
    for line in lines:
        instruction, stall, sets, waits = (*line, *(1, 7, 0)[len(line) - 1 :])
        if instruction.endswith(":"):
            text.append(instruction)
            continue
        control = stall << 41 | sets << 46 | 7 << 49 | waits << 52
        text += [f"        /*{pc:04x}*/   {instruction} ;   /* 0x{0:016x} */", f"   /* 0x{control:016x} */"]
        pc += 16
    return next(sass.kernels("\n".join(text)))


def clocks_of(code: sass.Kernel, parameter: int = 0, threads: int = 32) -> float:
    launch = Launch("k", (1, 1, 1), threads, 0, struct.pack("<q", parameter))
    return Walk(Program(code, lambda i: i.base), launch).run()[0]


def loop(*body: tuple) -> sass.Kernel:
    return kernel(
        ("LDC R2, c[0x0][0x210]", 1, 0),
        (".L_x_0:",),
        *body,
        ("IADD3 R2, R2, -0x1, RZ", 4, 7, 1),
        ("ISETP.NE.AND P0, PT, R2, RZ, PT", 5),
        ("@P0 BRA `(.L_x_0)", 2),
        ("EXIT", 1),
    )


def each_turn(code: sass.Kernel, threads: int = 32) -> float:
    return (clocks_of(code, 30, threads) - clocks_of(code, 10, threads)) / 20


def test_a_loop_takes_its_stalls_as_often_as_the_parameter_says():
    assert each_turn(loop()) == 4 + 5 + 2 + BRANCH


def test_a_result_is_waited_for_as_long_as_its_latency():
    body = ("LDS R4, [R5]", 1, 1), ("FADD R6, R4, R4", 2, 7, 0b10)
    assert each_turn(loop(*body)) == each_turn(loop()) + 1 + LATENCY["LDS"] + 2


def test_a_unit_is_busy_for_all_that_it_was_given():
    code = kernel(*[("HMMA.16816.F32.BF16 R8, R4, R6, R8", 1)] * 10, ("EXIT", 1))
    launch = Launch("k", (1, 1, 1), 256, 0, b"")
    spent = Walk(Program(code, lambda i: i.base), launch).run()[1]
    assert spent["busy: tensor"] == pytest.approx(10 * 2 * TENSOR["HMMA"])  # two warps of a scheduler


def test_warps_of_one_scheduler_share_its_tensor_core():
    body = [("HMMA.16816.F32.BF16 R8, R4, R6, R8", 1)] * 32
    one, two = each_turn(loop(*body)), each_turn(loop(*body), threads=256)
    assert one == pytest.approx(32 * TENSOR["HMMA"], rel=0.1)
    assert two == pytest.approx(64 * TENSOR["HMMA"], rel=0.1)


def test_a_barrier_waits_for_the_slowest_warp():
    slow = [("FADD R4, R4, R4", 10)] * 20
    code = kernel(
        ("S2R R0, SR_TID.X", 1, 0),
        ("ISETP.NE.AND P0, PT, R0, RZ, PT", 5, 7, 1),
        ("@P0 BRA `(.L_x_0)", 1),
        *slow,
        (".L_x_0:",),
        ("BAR.SYNC 0x0", 1),
        ("EXIT", 1),
    )
    assert clocks_of(code, threads=64) > 200 + BARRIER
    assert clocks_of(code, threads=64) < 200 + BARRIER + 60


def test_numbered_barriers_are_waited_at_by_as_many_threads_as_they_say():
    code = kernel(
        ("S2R R0, SR_TID.X", 1, 0),
        ("ISETP.GE.AND P0, PT, R0, 0x20, PT", 5, 7, 1),
        ("@P0 BRA `(.L_x_0)", 1),
        ("BAR.SYNC.DEFER_BLOCKING 0x1, 0x20", 1),  # the first warp, alone
        ("BAR.SYNC.DEFER_BLOCKING 0x1, 0x20", 1),
        (".L_x_0:",),
        ("BAR.SYNC.DEFER_BLOCKING 0x2, 0x40", 1),
        ("EXIT", 1),
    )
    assert 3 * BARRIER < clocks_of(code, threads=64) < 3 * BARRIER + 60
    with pytest.raises(Lost, match="wait at a barrier"):
        clocks_of(code, threads=96)  # three warps come where two are awaited


def test_who_arrives_at_a_barrier_goes_on():
    def code(last: str) -> sass.Kernel:
        return kernel(
            ("S2R R0, SR_TID.X", 1, 0),
            ("ISETP.GE.AND P0, PT, R0, 0x20, PT", 5, 7, 1),
            ("@P0 BRA `(.L_x_0)", 1),
            *[("FADD R4, R4, R4", 10)] * 20,
            ("BAR.SYNC.DEFER_BLOCKING 0x1, 0x40", 1),  # the first warp, which comes late
            ("EXIT", 1),
            (".L_x_0:",),
            (f"BAR.{last} 0x1, 0x40", 1),
            *[("FADD R4, R4, R4", 10)] * 20,
            ("EXIT", 1),
        )

    assert clocks_of(code("ARV"), threads=64) < 300
    assert clocks_of(code("SYNC.DEFER_BLOCKING"), threads=64) > 400


def test_branches_that_data_decides_spare_the_subroutine_of_rare_numbers():
    def code(rare: tuple) -> sass.Kernel:
        return kernel(
            ("FSETP.GT.AND P0, PT, R4, R5, PT", 5), ("@P0 BRA `(.L_x_0)", 1), rare, (".L_x_0:",), ("EXIT", 1)
        )

    assert clocks_of(code(("CALL.REL.NOINC `(.L_x_0)", 15))) < clocks_of(code(("FADD R4, R4, R4", 15)))


def test_a_loop_that_data_ends_is_not_guessed_at():
    code = kernel((".L_x_0:",), ("FSETP.GT.AND P0, PT, R4, R5, PT", 5), ("@P0 BRA `(.L_x_0)", 1), ("EXIT", 1))
    with pytest.raises(Lost, match="depends on data"):
        clocks_of(code)


def test_integers_are_computed_as_the_device_does():
    # 7 * 9 / 8 in 64 bits, negative and shifted: what the loop counts is what is left.
    body = (
        ("MOV R4, 0x7", 1),
        ("IMAD R5, R4, 0x9, RZ", 5),
        ("SHF.R.S32.HI R5, RZ, 0x3, R5", 5),
        ("LOP3.LUT R5, R5, 0x3, RZ, 0xc0, !PT", 5),
        ("LEA R6, R5, R4, 0x1", 5),
        ("IADD3 R6, -R6, 0xe, RZ", 5),
        ("ISETP.EQ.AND P1, PT, R6, 0x1, PT", 5),
        ("@!P1 FADD R4, R4, R4", 15),
        ("@P1 BRA `(.L_x_1)", 1),
        ("FADD R4, R4, R4", 15),
        (".L_x_1:",),
    )
    # 63 >> 3 = 7, 7 & 3 = 3, 3 * 2 + 7 = 13, 14 - 13 = 1: the branch is taken.
    assert each_turn(loop(*body)) == each_turn(loop()) + 1 + 5 * 6 + 15 + 1 + BRANCH


def test_more_clocks_than_recorded_are_a_fault():
    recorded = {"a": {"tile": 10_000, "unit": 0}}
    assert clocks.compared({"a": {"tile": 10_100, "unit": 150}}, recorded) == []
    (fault,) = clocks.compared({"a": {"tile": 10_400, "unit": 0}}, recorded)
    assert "10,400 clocks of a tile, recorded 10,000" in fault
    assert clocks.compared({"b": {"tile": 1}}, recorded) == ["b: not in clocks.json"]


def test_a_kernel_that_lost_its_stores_fails_the_census():
    before = {"k": {"sm_90": {"STG": 8, "HMMA": 64}}}
    assert census.compared(before, before) == []
    assert census.compared({"k": {"sm_90": {"HMMA": 64}}}, before) == [
        "k on sm_90: 0 STG, 8 in the census",
        "k on sm_90: writes nothing",
    ]
    fewer, local = ({"k": {"sm_90": before["k"]["sm_90"] | other}} for other in ({"STG": 3}, {"LDL": 1}))
    assert census.compared(fewer, before) == ["k on sm_90: 3 STG, 8 in the census"]
    assert "k on sm_90: 1 LDL: local memory" in census.compared(local, before)
    assert census.compared({}, before) == ["k: in the census, but there is no such kernel"]
