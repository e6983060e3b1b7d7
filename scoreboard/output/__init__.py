"""What is made of runs for other programs: TensorBoard, browsers, spreadsheets."""
