import cProfile, pstats, runpy
def test_p(capsys, monkeypatch, tmp_path):
    p = cProfile.Profile(); p.enable()
    runpy.run_path("/work/main/examples/integrate.py", run_name="__main__")
    p.disable()
    with capsys.disabled():
        pstats.Stats(p).sort_stats("cumtime").print_stats(45)
