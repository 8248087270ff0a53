from scripts import demo


def test_the_demo_shows_what_was_recorded_of_the_baseline():
    said = demo.recorded((demo.HOME / demo.TABLE).read_text()).splitlines()
    assert "Recorded, not run now" in said[0]
    facenet, baseline = (line.split("  ") for line in said[2:4])
    cells = [[cell.strip() for cell in row if cell.strip()] for row in (facenet, baseline)]
    assert cells[0] == ["FACENet", "61.1 / 66.9 / 52.5", "35.9 / 47.9 / 18.1", "41.8 / 43.2 / 39.9"]
    assert cells[1][0] == "three-stream baseline"
    assert cells[1][1:] == ["61.7 / 66.2 / 55.0", "44.8 / 56.4 / 27.8", "39.9 / 40.6 / 38.8"]
