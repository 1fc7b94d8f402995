"""Writes the images beside it, with the encoders that most people's files come from (Pillow, which
uses libjpeg-turbo, libpng and libwebp). Run: python make.py, with pillow.

All show the scene of ../decode/files.rs: 48x32 pixels, red left above, green right above, blue
below.
"""

import struct
import zlib

from PIL import Image, ImageCms

WIDTH, HEIGHT = 48, 32
RED, GREEN, BLUE = (200, 60, 30), (30, 160, 60), (20, 40, 200)


def scene():
    image = Image.new("RGB", (WIDTH, HEIGHT), BLUE)
    image.paste(RED, (0, 0, 16, 16))
    image.paste(GREEN, (16, 0, WIDTH, 16))
    return image


def p3():
    """A Display P3 profile: sRGB's curve, wider primaries."""

    def s15(value):
        return struct.pack(">i", round(value * 65536))

    def xyz(x, y, z):
        return b"XYZ \0\0\0\0" + s15(x) + s15(y) + s15(z)

    parameters = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    curve = b"para\0\0\0\0" + struct.pack(">HH", 3, 0) + b"".join(map(s15, parameters))
    name = b"Wide\0"
    description = b"desc\0\0\0\0" + struct.pack(">I", len(name)) + name + b"\0" * 79
    tags = {
        b"desc": description,
        b"cprt": b"text\0\0\0\0none\0",
        b"wtpt": xyz(0.9642, 1, 0.8249),
        b"rXYZ": xyz(0.51512, 0.2412, -0.00105),
        b"gXYZ": xyz(0.29198, 0.69225, 0.04189),
        b"bXYZ": xyz(0.1571, 0.06657, 0.78407),
        b"rTRC": curve,
        b"gTRC": curve,
        b"bTRC": curve,
    }
    body, table = b"", b""
    offset = 128 + 4 + 12 * len(tags)
    for tag, value in tags.items():
        value += b"\0" * (-len(value) % 4)
        table += tag + struct.pack(">II", offset + len(body), len(value))
        body += value
    header = struct.pack(">I4sI4s4s4s", 0, b"none", 0x02400000, b"mntr", b"RGB ", b"XYZ ")
    header += struct.pack(">6H", 2020, 1, 1, 0, 0, 0) + b"acsp" + b"\0" * 28
    header += s15(0.9642) + s15(1) + s15(0.8249)
    profile = header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body
    return struct.pack(">I", len(profile)) + profile[4:]


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def interlaced(image, name):
    """Adam7, which Pillow does not write."""
    raw = b""
    for x0, y0, dx, dy in [
        (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
        (0, 1, 1, 2),
    ]:
        for y in range(y0, HEIGHT, dy):
            raw += b"\0" + b"".join(bytes(image.getpixel((x, y))) for x in range(x0, WIDTH, dx))
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 2, 0, 0, 1)
    with open(name, "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header))
        file.write(chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b""))


def main():
    image = scene()
    second = Image.new("RGB", image.size, (255, 255, 0))
    full = {"quality": 95, "subsampling": 0}
    image.save("baseline.jpg", **full)
    image.save("subsampled.jpg", quality=95, subsampling=2)
    image.save("progressive.jpg", quality=95, progressive=True)
    image.save("restart.jpg", restart_marker_rows=1, **full)
    image.convert("L").save("grey.jpg", quality=95)
    image.convert("CMYK").save("cmyk.jpg", quality=95)
    image.save("plain.png")
    interlaced(image, "interlaced.png")
    image.save("lossless.webp", lossless=True)
    image.save("lossy.webp", quality=95)
    transparent = image.convert("RGBA")
    transparent.paste((0, 0, 0, 0), (0, 16, WIDTH, HEIGHT))
    transparent.save("alpha.webp", quality=95)
    transparent.save("alpha.png")
    frames = {"save_all": True, "append_images": [second, image], "duration": 100}
    image.save("animated.webp", lossless=True, **frames)
    image.save("animated.png", **frames)
    image.save("still.gif")
    image.save("picture.bmp")
    image.save("picture.tiff")
    with open("wide.icc", "wb") as file:
        file.write(p3())
    with open("srgb.icc", "wb") as file:
        file.write(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    image.save("wide.jpg", icc_profile=p3(), **full)


main()
