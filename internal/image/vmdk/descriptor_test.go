package vmdk

import (
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// esxi is a descriptor as ESXi hosts write them.
const esxi = `# Disk DescriptorFile
version=4
encoding="UTF-8"
CID=fffffffe
parentCID=ffffffff
isNativeSnapshot="no"
createType="vmfs"

# Extent description
RW 83886080 VMFS "web 01-flat.vmdk"

# Change Tracking File
changeTrackPath="web 01-ctk.vmdk"

# The Disk Data Base
#DDB

ddb.adapterType = "lsilogic"
ddb.thinProvisioned = "1"
`

func TestParseDescriptor(t *testing.T) {
	t.Parallel()
	one := Descriptor{Version: 4, CID: 0xfffffffe, CreateType: "vmfs",
		Extents: []DescriptorExtent{{ReadWrite, 83886080, VMFS, "web 01-flat.vmdk", 0}}}
	for name, text := range map[string]string{
		"esxi":        esxi,
		"crlf":        strings.ReplaceAll(esxi, "\n", "\r\n"),
		"padding":     esxi + strings.Repeat("\x00", 100) + "what was there before",
		"mark":        byteOrderMark + "\n" + esxi,
		"upper case":  strings.NewReplacer("parentCID=ffffffff", "PARENTCID = FFFFFFFF", "Disk Desc", "DISK DESC").Replace(esxi),
		"tabs":        strings.ReplaceAll(esxi, " VMFS ", "\tVMFS\t"),
		"code page":   strings.Replace(esxi, "UTF-8", "windows-1252", 1),
		"with offset": strings.Replace(esxi, "flat.vmdk\"", "flat.vmdk\" 0", 1),
	} {
		got, err := ParseDescriptor([]byte(text))
		if err != nil || !reflect.DeepEqual(got, one) {
			t.Errorf("%s: got %+v, error %v", name, got, err)
		}
	}
	got, err := ParseDescriptor([]byte(strings.Replace(esxi, "RW 83886080 VMFS \"web 01-flat.vmdk\"",
		"RW 7 FLAT \"ä.vmdk\" 0\nRDONLY 8 FLAT \"ä.vmdk\" 7\nNOACCESS 9 ZERO\nRW 10 SPARSE \"x..vmdk\"", 1)))
	want := []DescriptorExtent{{ReadWrite, 7, Flat, "ä.vmdk", 0}, {ReadOnly, 8, Flat, "ä.vmdk", 7}, {NoAccess, 9, Zero, "", 0}, {ReadWrite, 10, Sparse, "x..vmdk", 0}}
	if err != nil || !reflect.DeepEqual(got.Extents, want) || got.Capacity() != 34*512 {
		t.Errorf("got %+v, error %v", got, err)
	}
}

func TestParseDescriptorRefuses(t *testing.T) {
	t.Parallel()
	const line = `RW 83886080 VMFS "web 01-flat.vmdk"`
	extent := func(with string) string { return strings.Replace(esxi, line, with, 1) }
	key := func(old, with string) string {
		if !strings.Contains(esxi, old) {
			t.Fatalf("no %q", old)
		}
		return strings.Replace(esxi, old, with, 1)
	}
	many := func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, "RW 1 ZERO\n#%d\n", i)
		}
		return extent(b.String())
	}
	if _, err := ParseDescriptor([]byte(many(maxExtents))); err != nil {
		t.Errorf("%d extents: %v", maxExtents, err)
	}
	for name, c := range map[string]struct {
		text, want string
		advice     bool
	}{
		"empty":             {"", "does not begin", false},
		"no head":           {"version=1\n", "does not begin", false},
		"too long":          {esxi + strings.Repeat("#\n", maxDescriptor/2), "more than 65536 bytes", false},
		"too many":          {many(maxExtents + 1), "more than 4096 extents", false},
		"garbage":           {esxi + "hello", "line 20: \"hello\" is neither", false},
		"long garbage":      {esxi + strings.Repeat("x", 10000), "…", false},
		"control":           {esxi + "a = \x1b[2J", "control characters", false},
		"no version":        {key("version=4\n", ""), "no version", false},
		"version 0":         {key("version=4", "version=0"), "version is \"0\"", false},
		"version 5":         {key("version=4", "version=5"), "want 1 to 4", false},
		"version x":         {key("version=4", "version=\"1\"x"), "version is", false},
		"no CID":            {key("\nCID=fffffffe", ""), "no CID", false},
		"no parent":         {key("parentCID=ffffffff", ""), "no parentCID", false},
		"two parents":       {key("parentCID=ffffffff", "parentCID=ffffffff\nparentcid=ffffffff"), "parentcid is given twice", false},
		"bad CID":           {key("CID=fffffffe", "CID=xyz"), "CID is \"xyz\"", false},
		"signed CID":        {key("CID=fffffffe", "CID=-1"), "CID is \"-1\"", false},
		"long parent":       {key("parentCID=ffffffff", "parentCID=0ffffffff"), "parentCID is", false},
		"no create type":    {key("createType=\"vmfs\"\n", ""), "no createType", false},
		"other create type": {key("\"vmfs\"", "\"new\""), "createType \"new\" is unknown", false},
		"snapshot":          {key("parentCID=ffffffff", "parentCID=deadbeef"), "CID deadbeef (consolidate", true},
		"native snapshot":   {key("isNativeSnapshot=\"no\"", "isNativeSnapshot=\"yes\""), "consolidate", true},
		"delta type":        {key("\"vmfs\"", "\"vmfsSparse\""), "consolidate", true},
		"se type":           {key("\"vmfs\"", "\"seSparse\""), "consolidate", true},
		"delta extent":      {extent(`RW 8 VMFSSPARSE "a-delta.vmdk"`), "consolidate", true},
		"se extent":         {extent(`RW 8 SESPARSE "a-sesparse.vmdk"`), "consolidate", true},
		"raw type":          {key("\"vmfs\"", "\"fullDevice\""), "vmkfstools", true},
		"rdm type":          {key("\"vmfs\"", "\"vmfsPassthroughRawDeviceMap\""), "vmkfstools", true},
		"rdm extent":        {extent(`RW 8 VMFSRDM "a-rdm.vmdk"`), "vmkfstools", true},
		"device":            {extent(`RW 8 FLAT "/dev/sda" 0`), "vmkfstools", true},
		"windows device":    {extent(`RW 8 FLAT "\\.\PhysicalDrive0" 0`), "vmkfstools", true},
		"encrypted":         {esxi + "ddb.encryption.keyId = \"x\"", "decrypt", true},
		"vm encryption":     {esxi + "ddb.iofilters = \"VMW_vmwarevmcrypt_1.0.0\"", "decrypt", true},
		"key safe":          {esxi + "encryptedKeySafe = \"x\"", "decrypt", true},
		"no extents":        {extent(""), "no extents", false},
		"no sectors":        {extent(`RW`), "extent has \"\" sectors", false},
		"zero sectors":      {extent(`RW 0 FLAT "a" 0`), "extent has \"0\" sectors", false},
		"negative":          {extent(`RW -1 FLAT "a" 0`), "extent has \"-1\" sectors", false},
		"huge":              {extent(`RW 99999999999999999999 FLAT "a" 0`), "sectors, want 1 to", false},
		"huge together":     {extent("RW 137438953472 ZERO\nRW 1 ZERO"), "more than 70368744177664 bytes", false},
		"no type":           {extent(`RW 8`), "extent type \"\" is unknown", false},
		"other type":        {extent(`RW 8 NEW "a"`), "extent type \"NEW\" is unknown", false},
		"no name":           {extent(`RW 8 FLAT`), "no file name", false},
		"bare name":         {extent(`RW 8 FLAT a 0`), "no file name", false},
		"open name":         {extent(`RW 8 FLAT "a 0`), "no end", false},
		"empty name":        {extent(`RW 8 FLAT "" 0`), "no name of a file", false},
		"dots":              {extent(`RW 8 FLAT ".." 0`), "no name of a file", false},
		"dot":               {extent(`RW 8 SPARSE "."`), "no name of a file", false},
		"long name":         {extent(`RW 8 SPARSE "` + strings.Repeat("a", 256) + `"`), "no name of a file", false},
		"above":             {extent(`RW 8 FLAT "../a" 0`), "beside the descriptor", true},
		"windows path":      {extent(`RW 8 FLAT "c:\a" 0`), "beside the descriptor", true},
		"absolute":          {extent(`RW 8 VMFS "/vmfs/volumes/a/a-flat.vmdk"`), "beside the descriptor", true},
		"not utf-8":         {extent("RW 8 FLAT \"a\xff\" 0"), "not UTF-8", false},
		"code page":         {strings.Replace(extent("RW 8 FLAT \"a\xe4\" 0"), "UTF-8", "windows-1252", 1), "rename the file", true},
		"bad offset":        {extent(`RW 8 FLAT "a" x`), "begins at sector \"x\"", false},
		"two offsets":       {extent(`RW 8 FLAT "a" 0 1`), "begins at sector \"0 1\"", false},
		"far offset":        {extent(`RW 8 FLAT "a" 999999999999999`), "begins at sector", false},
		"sparse offset":     {extent(`RW 8 SPARSE "a" 0`), "behind a sparse extent", false},
		"zero with a name":  {extent(`RW 8 ZERO "a"`), "behind an extent of zeros", false},
		"no access":         {extent(`NOACCESS 8 FLAT "a" 0`), "may not read", true},
		"sparse twice":      {extent("RW 8 SPARSE \"a\"\nRW 8 SPARSE \"a\""), "same bytes of \"a\"", false},
		"flat twice":        {extent("RW 8 FLAT \"a\" 4\nRW 8 ZERO\nRW 5 FLAT \"a\" 0"), "same bytes of \"a\"", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d, err := ParseDescriptor([]byte(c.text))
			if err == nil || !strings.Contains(err.Error(), c.want) || len(err.Error()) > 1000 {
				t.Fatalf("got %+v, error %v, want one with %q", d, err, c.want)
			}
			_, isDisk := errors.AsType[*DiskError](err)
			_, isUnsupported := errors.AsType[*UnsupportedError](err)
			if isUnsupported != c.advice || isDisk == c.advice {
				t.Errorf("error is %v, with advice: %v", err, isUnsupported)
			}
		})
	}
}

// FuzzParseDescriptor wants no panic, and names and numbers that are safe to
// use in what is accepted.
func FuzzParseDescriptor(f *testing.F) {
	f.Add([]byte(esxi))
	f.Add([]byte(strings.Replace(esxi, "RW 8", "RW 1 ZERO\nRDONLY 5 SPARSE \"a\"\nRW 2 FLAT \"b\" 6\nRW 8", 1)))
	f.Add([]byte(descriptor(Header{Capacity: 2048}, 7)))
	f.Fuzz(func(t *testing.T, text []byte) {
		d, err := ParseDescriptor(text)
		if err != nil {
			_, isDisk := errors.AsType[*DiskError](err)
			_, isUnsupported := errors.AsType[*UnsupportedError](err)
			if isDisk == isUnsupported {
				t.Fatalf("error is %v", err)
			}
			for _, r := range err.Error() {
				if r < ' ' || r == 0x7f {
					t.Fatalf("error %q has control characters", err)
				}
			}
			return
		}
		if c := d.Capacity(); c <= 0 || c > MaxCapacity || c%SectorSize != 0 || len(d.Extents) > maxExtents {
			t.Fatalf("%d extents of %d bytes", len(d.Extents), c)
		}
		for _, e := range d.Extents {
			if e.Type == Zero {
				continue
			}
			if !filepath.IsLocal(e.Name) || strings.ContainsAny(e.Name, "/\\\x00") || e.Offset < 0 || e.Offset > maxSectors {
				t.Fatalf("extent is %+v", e)
			}
		}
	})
}
