"""What the results of an evaluation say: numbers (`coco`), charts (`charts`) and drawn images (`images`)."""
