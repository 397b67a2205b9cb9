package libvirt

import (
	"net"
	"net/netip"
	"slices"
	"strconv"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/fault"
)

// networkData is the file network_data.json of OpenStack's config drive.
type networkData struct {
	Links    []guestLink    `json:"links"`
	Networks []guestNetwork `json:"networks"`
	Services []guestService `json:"services"`
}

// guestLink is a network interface for the guest.
type guestLink struct {
	ID   string `json:"id"`
	VIF  string `json:"vif_id"`
	Type string `json:"type"`
	// MTU is null if it is not known.
	MTU *int   `json:"mtu"`
	MAC string `json:"ethernet_mac_address"`
}

// guestNetwork is one address of a link.
type guestNetwork struct {
	ID   string `json:"id"`
	Type string `json:"type"`
	Link string `json:"link"`
	// staticNetwork is nil if the guest gets these data by DHCP.
	*staticNetwork

	NetworkID string `json:"network_id"`
}

type staticNetwork struct {
	Address  string         `json:"ip_address"`
	Netmask  string         `json:"netmask"`
	Routes   []guestRoute   `json:"routes"`
	Services []guestService `json:"services"`
}

type guestRoute struct {
	Network string `json:"network"`
	Netmask string `json:"netmask"`
	Gateway string `json:"gateway"`
}

type guestService struct {
	Type    string `json:"type"`
	Address string `json:"address"`
}

// networkDataOf returns the description of the networks for the guest. The result is nil if the addresses of an interface
// are not known. Then the drive does not have the file, and the guest uses DHCP. If the file lacked an interface, the
// guest would not use this interface. Errors: Invalid, if an address is not valid.
func networkDataOf(list []compute.Interface) (*networkData, error) {
	out := &networkData{[]guestLink{}, []guestNetwork{}, []guestService{}}
	for i := range list {
		one := &list[i]
		if len(one.Addresses) == 0 {
			return nil, nil
		}
		link := guestLink{ID: "tap" + one.ID[:min(11, len(one.ID))], VIF: one.ID, Type: "phy", MAC: one.MAC} // the name is that of Nova's device on the host
		if one.MTU > 0 {
			link.MTU = &one.MTU
		}
		out.Links = append(out.Links, link)
		for j := range one.Addresses {
			n, err := guestNetworkOf(&one.Addresses[j])
			if err != nil {
				return nil, fault.New(fault.Invalid, "interface %s: %w", one.ID, err)
			}
			n.ID, n.Link, n.NetworkID = "network"+strconv.Itoa(len(out.Networks)), link.ID, one.NetworkID
			out.Networks = append(out.Networks, n)
			out.addServices(nameServers(one.Addresses[j].DNS))
		}
	}
	return out, nil
}

// addServices adds the services that are not in the list yet.
func (d *networkData) addServices(list []guestService) {
	for _, s := range list {
		if !slices.Contains(d.Services, s) {
			d.Services = append(d.Services, s)
		}
	}
}

// guestNetworkOf returns an address without the names of its network and its link. The types are Nova's.
func guestNetworkOf(a *compute.GuestAddress) (out guestNetwork, err error) {
	at, err := netip.ParsePrefix(a.Prefix)
	if err != nil {
		return out, err
	}
	kind, mask := kindAndMask(at)
	out.Type = kind
	switch {
	case a.IPv6Mode != "":
		out.Type += "_" + a.IPv6Mode
	case a.DHCP:
		out.Type += "_dhcp"
		return out, nil
	}
	out.staticNetwork = &staticNetwork{Address: at.Addr().String(), Netmask: mask, Routes: []guestRoute{}, Services: nameServers(a.DNS)}
	if a.Gateway != "" {
		anywhere, err := at.Addr().Prefix(0)
		if err != nil {
			return out, err
		}
		_, mask := kindAndMask(anywhere)
		out.Routes = append(out.Routes, guestRoute{anywhere.Addr().String(), mask, a.Gateway})
	}
	for _, r := range a.Routes {
		to, err := netip.ParsePrefix(r.Destination)
		if err != nil {
			return out, err
		}
		_, mask := kindAndMask(to)
		out.Routes = append(out.Routes, guestRoute{to.Masked().Addr().String(), mask, r.Gateway})
	}
	return out, nil
}

// kindAndMask returns the kind of a network, ipv4 or ipv6, and its netmask.
func kindAndMask(p netip.Prefix) (kind, mask string) {
	kind = "ipv6"
	if p.Addr().Is4() {
		kind = "ipv4"
	}
	return kind, net.IP(net.CIDRMask(p.Bits(), p.Addr().BitLen())).String()
}

func nameServers(list []string) []guestService {
	out := []guestService{}
	for _, address := range list {
		out = append(out, guestService{"dns", address})
	}
	return out
}
