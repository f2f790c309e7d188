package libvirt

import "strings"

// guest is what the guest OS id says that matters for the machine.
type guest struct {
	windows bool
	// legacy is Windows before Vista, and DOS: systems without drivers for
	// AHCI, LSI SAS or the Hyper-V interfaces, but with one for IDE.
	legacy bool
	linux  bool
	osinfo string // id in the libosinfo database; empty when there is none
}

// osinfoID maps VirtualMachineGuestOsIdentifier, without "Guest" and the mark
// for 64 bits, to ids of the libosinfo database. VMware's ids name a major
// version; where libosinfo wants a minor one, its "unknown" entry or the last
// release stands for all.
var osinfoID = map[string]string{
	"win31":            "http://microsoft.com/win/3.1",
	"win95":            "http://microsoft.com/win/95",
	"win98":            "http://microsoft.com/win/98",
	"winMe":            "http://microsoft.com/win/me",
	"winNT":            "http://microsoft.com/winnt/4.0",
	"win2000Pro":       "http://microsoft.com/win/2k",
	"win2000Serv":      "http://microsoft.com/win/2k",
	"win2000AdvServ":   "http://microsoft.com/win/2k",
	"winXPHome":        "http://microsoft.com/win/xp",
	"winXPPro":         "http://microsoft.com/win/xp",
	"winNetWeb":        "http://microsoft.com/win/2k3",
	"winNetStandard":   "http://microsoft.com/win/2k3",
	"winNetEnterprise": "http://microsoft.com/win/2k3",
	"winNetDatacenter": "http://microsoft.com/win/2k3",
	"winNetBusiness":   "http://microsoft.com/win/2k3",
	"winLonghorn":      "http://microsoft.com/win/2k8",
	"winVista":         "http://microsoft.com/win/vista",
	"windows7":         "http://microsoft.com/win/7",
	"windows7Server":   "http://microsoft.com/win/2k8r2",
	"windows8":         "http://microsoft.com/win/8",
	"windows8Server":   "http://microsoft.com/win/2k12",
	"windows9":         "http://microsoft.com/win/10",
	"windows9Server":   "http://microsoft.com/win/2k16",
	"windows11":        "http://microsoft.com/win/11",
	// vSphere names a Windows Server after its predecessor.
	"windows2019srv":     "http://microsoft.com/win/2k19",
	"windows2019srvNext": "http://microsoft.com/win/2k22",
	"windows2022srvNext": "http://microsoft.com/win/2k25",
	"rhel4":              "http://redhat.com/rhel/4.9",
	"rhel5":              "http://redhat.com/rhel/5.11",
	"rhel6":              "http://redhat.com/rhel/6-unknown",
	"rhel7":              "http://redhat.com/rhel/7-unknown",
	"rhel8":              "http://redhat.com/rhel/8-unknown",
	"rhel9":              "http://redhat.com/rhel/9-unknown",
	"rhel10":             "http://redhat.com/rhel/10-unknown",
	"centos6":            "http://centos.org/centos/6.10",
	"centos7":            "http://centos.org/centos/7.0",
	"centos8":            "http://centos.org/centos/8",
	"centos9":            "http://centos.org/centos-stream/9",
	"oracleLinux6":       "http://oracle.com/ol/6.10",
	"oracleLinux7":       "http://oracle.com/ol/7.9",
	"oracleLinux8":       "http://oracle.com/ol/8.5",
	"rockylinux":         "http://rockylinux.org/rocky/unknown",
	"sles10":             "http://suse.com/sles/10.4",
	"sles11":             "http://suse.com/sles/11.4",
	"sles12":             "http://suse.com/sles/12-unknown",
	"sles15":             "http://suse.com/sle/15-unknown",
	"opensuse":           "http://opensuse.org/opensuse/unknown",
	"fedora":             "http://fedoraproject.org/fedora/unknown",
	"debian4":            "http://debian.org/debian/4",
	"debian5":            "http://debian.org/debian/5",
	"debian6":            "http://debian.org/debian/6",
	"debian7":            "http://debian.org/debian/7",
	"debian8":            "http://debian.org/debian/8",
	"debian9":            "http://debian.org/debian/9",
	"debian10":           "http://debian.org/debian/10",
	"debian11":           "http://debian.org/debian/11",
	"debian12":           "http://debian.org/debian/12",
	"debian13":           "http://debian.org/debian/13",
	"freebsd11":          "http://freebsd.org/freebsd/11.4",
	"freebsd12":          "http://freebsd.org/freebsd/12.3",
	"freebsd13":          "http://freebsd.org/freebsd/13.0",
	"freebsd14":          "http://freebsd.org/freebsd/14.0",
	"solaris10":          "http://sun.com/solaris/10",
	"solaris11":          "http://oracle.com/solaris/11",
	"other24xLinux":      genericOldLinux,
	"other26xLinux":      genericOldLinux,
}

// libosinfo's entries for a Linux of which no more is known.
const (
	genericLinux    = "http://libosinfo.org/linux/2022"
	genericOldLinux = "http://libosinfo.org/linux/2016"
)

// linuxPrefixes begin the ids of Linux guests.
var linuxPrefixes = []string{
	"rhel", "redhat", "centos", "oracleLinux", "rockylinux", "almalinux", "sles", "suse", "opensuse", "nld", "oes",
	"sjds", "fedora", "debian", "ubuntu", "coreos", "vmwarePhoton", "amazonlinux", "asianux", "mandrake", "mandriva",
	"turboLinux", "miraclelinux", "pardus", "fusionos", "prolinux", "kylinlinux", "genericLinux", "otherLinux",
	"other24xLinux", "other26xLinux", "other3xLinux", "other4xLinux", "other5xLinux", "other6xLinux", "other7xLinux",
}

func guestOf(id string) guest {
	base := strings.TrimSuffix(id, "Guest")
	base = strings.TrimSuffix(strings.TrimSuffix(base, "64"), "_")
	g := guest{osinfo: osinfoID[base], windows: strings.HasPrefix(base, "win")}
	for _, p := range []string{"dos", "win31", "win95", "win98", "winMe", "winNT", "win2000", "winXP", "winNet"} {
		g.legacy = g.legacy || strings.HasPrefix(base, p)
	}
	for _, p := range linuxPrefixes {
		g.linux = g.linux || strings.HasPrefix(base, p)
	}
	if g.linux && g.osinfo == "" {
		g.osinfo = genericLinux
	}
	return g
}

// localTime reports whether the guest expects its hardware clock in local
// time.
func (g guest) localTime() bool { return g.windows || g.legacy }
