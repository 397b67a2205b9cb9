package libvirt

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math"

	"github.com/armature-go/armature/fault"
)

// magics has the bytes by which files of formats other than raw are recognized. A raw image with such bytes is refused,
// because a tool that guesses formats would follow the references in the file.
var magics = []struct {
	format string
	at     int64
	bytes  string
}{
	{"qcow2", 0, "QFI\xfb"},
	{"qed", 0, "QED\x00"},
	{"vmdk", 0, "KDMV"},
	{"vmdk", 0, "COWD"},
	{"vmdk", 0, "# Disk DescriptorFile"},
	{"vhd", 0, "conectix"},
	{"vhdx", 0, "vhdxfile"},
	{"vdi", 64, "\x7f\x10\xda\xbe"},
	{"parallels", 0, "WithoutFreeSpace"},
	{"parallels", 0, "WithouFreSpacExt"},
	{"luks", 0, "LUKS\xba\xbe"},
}

// Fields of the header of qcow2 and bits of its incompatible features, from QEMU's docs/interop/qcow2.rst.
const (
	qcowHeader       = 104
	qcowExternalData = 1 << 2
	qcowKnown        = 1<<0 | 1<<3 | 1<<4 // dirty, compression type, extended L2 entries: these do not refer to another file
)

// checkImage checks an image. Errors: Invalid if the image does not have the given format, which is that of its name, or refers to
// another file: a backing file, or an external data file, as in CVE-2024-32498. checkImage reads only the header, and uses no tool that
// would follow references in the image.
func checkImage(f io.ReaderAt, format string) error {
	head := make([]byte, qcowHeader)
	n, err := f.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	head = head[:n]
	is := "raw"
	for _, m := range magics {
		if int64(n) >= m.at && bytes.HasPrefix(head[m.at:], []byte(m.bytes)) {
			is = m.format
		}
	}
	if is != format {
		return fault.New(fault.Invalid, "the image has the format %s, not %s as its name says", is, format)
	}
	if format == "raw" {
		return nil
	}
	if n < 72 {
		return fault.New(fault.Invalid, "the image has %d bytes, less than a header of qcow2", n)
	}
	version := binary.BigEndian.Uint32(head[4:])
	switch {
	case version != 2 && version != 3:
		return fault.New(fault.Invalid, "the image has version %d of qcow2, not 2 or 3", version)
	case binary.BigEndian.Uint64(head[8:]) != 0:
		return fault.New(fault.Invalid, "the image has a backing file: an image must not refer to other files")
	case version == 3 && n < qcowHeader:
		return fault.New(fault.Invalid, "the image has %d bytes, less than a header of qcow2", n)
	}
	if version == 3 {
		features := binary.BigEndian.Uint64(head[72:])
		switch {
		case features&qcowExternalData != 0:
			return fault.New(fault.Invalid, "the image has an external data file: an image must not refer to other files")
		case features&^qcowKnown != 0:
			return fault.New(fault.Invalid, "the image is corrupt, or has unknown features: %#x", features)
		}
	}
	return noDataFile(f, head, version)
}

// virtualSize returns the disk size of a qcow2 image, in bytes. checkImage must have accepted the image. For a size above the largest int64,
// virtualSize returns the largest int64.
func virtualSize(f io.ReaderAt) (int64, error) {
	var size [8]byte
	if _, err := f.ReadAt(size[:], 24); err != nil {
		return 0, err
	}
	return int64(min(binary.BigEndian.Uint64(size[:]), math.MaxInt64)), nil
}

// noDataFile returns Invalid if an extension of the image's header names an external data file.
func noDataFile(f io.ReaderAt, head []byte, version uint32) error {
	at := int64(72)
	if version == 3 {
		at = int64(binary.BigEndian.Uint32(head[100:]))
	}
	const dataFileName = 0x44415441
	for range 64 {
		var ext [8]byte
		if _, err := f.ReadAt(ext[:], at); err != nil {
			return fault.New(fault.Invalid, "the image's header does not end: %w", err)
		}
		kind, length := binary.BigEndian.Uint32(ext[:]), binary.BigEndian.Uint32(ext[4:])
		switch {
		case kind == 0:
			return nil
		case kind == dataFileName:
			return fault.New(fault.Invalid, "the image names an external data file: an image must not refer to other files")
		case length > 1<<16:
			return fault.New(fault.Invalid, "the image's header has an extension of %d bytes", length)
		}
		at += 8 + int64(length+7)/8*8
	}
	return fault.New(fault.Invalid, "the image's header has more than 64 extensions")
}
