from scripts import demo


def test_the_demo_shows_what_was_recorded_of_the_baseline():
    said = demo.recorded((demo.HOME / demo.TABLE).read_text()).splitlines()
    assert "Recorded, not run now" in said[0]
    facenet, baseline = (line.split("  ") for line in said[2:4])
    cells = [[cell.strip() for cell in row if cell.strip()] for row in (facenet, baseline)]
    assert cells[0] == ["FACENet", "76.6 / 81.5 / 69.2", "43.2 / 56.6 / 23.4", "43.1 / 44.3 / 41.3"]
    assert said[4].startswith("What this means: trained from scratch, FACENet is behind")
    assert cells[1][0] == "three-stream baseline"
    assert cells[1][1:] == ["79.3 / 81.8 / 75.6", "50.8 / 59.1 / 38.5", "41.5 / 42.4 / 40.2"]
