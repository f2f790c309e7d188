package boottest

import (
	"encoding/binary"
	"fmt"
)

const (
	sectorSize = 512
	// textOffset is a place in the disk, in bytes, that a boot sector alone
	// does not prove: it lies many grains and clusters behind the first, on a
	// boundary of both. The text runs over it, half before and half after.
	textOffset = 3 << 20
	// maxText is how long a text may be: one sector on each side.
	maxText = 2 * sectorSize
	// headSize is how many bytes BootDisk gives.
	headSize = textOffset + sectorSize
)

// Where things are in the guest's memory, and in the boot sector less
// loadedAt. The program has these addresses in it.
const (
	loadedAt = 0x7C00 // where a BIOS puts the boot sector
	uartAt   = 0x7C80
	packetAt = 0x7C90
	failedAt = 0x7CA0
	bufferAt = 0x7E00 // behind the boot sector
)

// failedText is what the guest writes when its BIOS cannot read the disk.
const failedText = "boot disk: cannot read\r\n"

// program is 16-bit code that sets up the serial port, reads the text from the
// disk with the BIOS (INT 13h AH=42h, "Enhanced Disk Drive Specification"),
// writes it to the port and halts. It drives the port itself (a 16550A at
// 3F8h): a BIOS may have its own uses for INT 14h, which knows no 115200 baud.
var program = []byte{
	0xFA,       // 7C00         cli
	0x31, 0xC0, // 7C01         xor  ax, ax
	0x8E, 0xD8, // 7C03         mov  ds, ax
	0x8E, 0xD0, // 7C05         mov  ss, ax
	0xBC, 0x00, 0x7C, // 7C07         mov  sp, 7C00h
	0xFB, // 7C0A         sti
	0xFC, // 7C0B         cld
	0x52, // 7C0C         push dx              ; DL is the drive that was booted from

	0xBE, 0x80, 0x7C, // 7C0D         mov  si, uart
	0xB6, 0x03, // 7C10         mov  dh, 03h          ; DX is 3xxh
	0xB9, 0x07, 0x00, // 7C12         mov  cx, 7
	0xAD,       // 7C15  next:  lodsw                 ; AL the register, AH its value
	0x88, 0xC2, // 7C16         mov  dl, al
	0x88, 0xE0, // 7C18         mov  al, ah
	0xEE,       // 7C1A         out  dx, al
	0xE2, 0xF8, // 7C1B         loop next

	0x5A,             // 7C1D         pop  dx
	0xBE, 0x90, 0x7C, // 7C1E         mov  si, packet
	0xB4, 0x42, // 7C21         mov  ah, 42h
	0xCD, 0x13, // 7C23         int  13h              ; CF is set when it fails
	0xBE, 0x00, 0x00, // 7C25         mov  si, text         ; BootDisk fills it in
	0xB9, 0x00, 0x00, // 7C28         mov  cx, its length   ; BootDisk fills it in
	0x73, 0x06, // 7C2B         jnc  write
	0xBE, 0xA0, 0x7C, // 7C2D         mov  si, failed
	0xB9, byte(len(failedText)), 0x00, // 7C30         mov  cx, its length

	0xFC,             // 7C33  write: cld
	0xBA, 0xFD, 0x03, // 7C34         mov  dx, 3FDh         ; line status
	0xEC,       // 7C37  wait:  in   al, dx
	0xA8, 0x20, // 7C38         test al, 20h          ; is there room?
	0x74, 0xFB, // 7C3A         jz   wait
	0xB2, 0xF8, // 7C3C         mov  dl, F8h          ; data
	0xAC,       // 7C3E         lodsb
	0xEE,       // 7C3F         out  dx, al
	0xB2, 0xFD, // 7C40         mov  dl, FDh
	0xE2, 0xF3, // 7C42         loop wait

	0xFA,       // 7C44         cli
	0xF4,       // 7C45  halt:  hlt
	0xEB, 0xFD, // 7C46         jmp  halt
}

// Where BootDisk fills in the address and the length of the text.
const (
	textField   = 0x7C26
	lengthField = 0x7C29
)

// uart sets the serial port to 115200 baud, 8 data bits, no parity, 1 stop bit.
var uart = []byte{
	0xF9, 0x00, // interrupts off
	0xFB, 0x80, // the next two are the divisor
	0xF8, 0x01, // 115200 / 1
	0xF9, 0x00,
	0xFB, 0x03, // 8N1
	0xFA, 0x07, // FIFOs on, and emptied
	0xFC, 0x03, // DTR, RTS
}

// packet is the disk address packet: which sectors to read to where.
func packet() []byte {
	p := []byte{16, 0} // its size
	p = binary.LittleEndian.AppendUint16(p, maxText/sectorSize)
	p = binary.LittleEndian.AppendUint16(p, bufferAt) // offset and
	p = binary.LittleEndian.AppendUint16(p, 0)        // segment
	return binary.LittleEndian.AppendUint64(p, textOffset/sectorSize-1)
}

// BootDisk gives the first bytes of a disk that a BIOS can boot from, a little
// over 3 MiB. The guest writes text to the first serial port and halts. It
// reads the text from around the third MiB, so the text shows more than that
// the first sector arrived: the controller works, and the disk is whole as far
// as there. When reading fails the guest says so instead, and Boot knows that.
// BootDisk panics unless text has 1 to 1024 bytes.
func BootDisk(text string) []byte {
	if len(text) < 1 || len(text) > maxText {
		panic(fmt.Sprintf("boot disk: text has %d bytes, want 1 to %d", len(text), maxText))
	}
	half := len(text) / 2
	disk := make([]byte, headSize)
	copy(disk, program)
	copy(disk[uartAt-loadedAt:], uart)
	copy(disk[packetAt-loadedAt:], packet())
	copy(disk[failedAt-loadedAt:], failedText)
	binary.LittleEndian.PutUint16(disk[textField-loadedAt:], uint16(bufferAt+sectorSize-half))
	binary.LittleEndian.PutUint16(disk[lengthField-loadedAt:], uint16(len(text)))
	disk[sectorSize-2], disk[sectorSize-1] = 0x55, 0xAA // the mark of a boot sector
	copy(disk[textOffset-half:], text)
	return disk
}
