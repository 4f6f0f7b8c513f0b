"""Output names that count up from what is there."""

from pathlib import Path


def get_save_image_path(filename_prefix, output_dir, image_width=0, image_height=0):
    taken = [path.name for path in Path(output_dir).glob(f"{filename_prefix}_*")]
    numbers = [int(name[len(filename_prefix) + 1 :].split("_")[0]) for name in taken]
    return output_dir, filename_prefix, max(numbers, default=0) + 1, "", filename_prefix


def get_folder_paths(folder_name):
    return [str(Path(__file__).with_name(folder_name))]
