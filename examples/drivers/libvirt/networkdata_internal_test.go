package libvirt

import (
	"encoding/json"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/fault"
)

// TestNetworkData: the files of the config drive tell the guest the addresses, routes and name servers of all interfaces, as Nova does.
func TestNetworkData(t *testing.T) {
	t.Parallel()
	first := compute.Interface{
		ID: "8a0f6b1d-2f4e-4c58-8f0e-6f2b7c9d4e21", MAC: "fa:16:3e:00:00:01", Network: "bridge:br1", NetworkID: "net-1", MTU: 1450, Tag: "trusted",
		Addresses: []compute.GuestAddress{
			{Prefix: "10.0.0.5/24", Gateway: "10.0.0.1", DNS: []string{"8.8.8.8"}, Routes: []compute.Route{{Destination: "10.1.0.0/16", Gateway: "10.0.0.2"}}},
			{Prefix: "2001:db8::5/64", Gateway: "2001:db8::1", IPv6Mode: "slaac", DHCP: true},
		},
	}
	second := compute.Interface{
		ID: "b", MAC: "fa:16:3e:00:00:02", Network: "net", NetworkID: "net-2",
		Addresses: []compute.GuestAddress{{Prefix: "10.2.0.5/24", Gateway: "10.2.0.1", DHCP: true, DNS: []string{"8.8.8.8", "9.9.9.9"}}},
	}
	const one = `{"links": [
		{"id": "tap8a0f6b1d-2f", "vif_id": "8a0f6b1d-2f4e-4c58-8f0e-6f2b7c9d4e21", "type": "phy", "mtu": 1450, "ethernet_mac_address": "fa:16:3e:00:00:01"},
		{"id": "tapb", "vif_id": "b", "type": "phy", "mtu": null, "ethernet_mac_address": "fa:16:3e:00:00:02"}],
		"networks": [
		{"id": "network0", "type": "ipv4", "link": "tap8a0f6b1d-2f", "ip_address": "10.0.0.5", "netmask": "255.255.255.0", "network_id": "net-1",
			"routes": [{"network": "0.0.0.0", "netmask": "0.0.0.0", "gateway": "10.0.0.1"}, {"network": "10.1.0.0", "netmask": "255.255.0.0", "gateway": "10.0.0.2"}],
			"services": [{"type": "dns", "address": "8.8.8.8"}]},
		{"id": "network1", "type": "ipv6_slaac", "link": "tap8a0f6b1d-2f", "ip_address": "2001:db8::5", "netmask": "ffff:ffff:ffff:ffff::", "network_id": "net-1",
			"routes": [{"network": "::", "netmask": "::", "gateway": "2001:db8::1"}], "services": []},
		{"id": "network2", "type": "ipv4_dhcp", "link": "tapb", "network_id": "net-2"}],
		"services": [{"type": "dns", "address": "8.8.8.8"}, {"type": "dns", "address": "9.9.9.9"}]}`
	for _, tt := range []struct {
		name string
		list []compute.Interface
		want string // empty: no file
	}{
		{"none", nil, `{"links": [], "networks": [], "services": []}`},
		{"two", []compute.Interface{first, second}, one},
		{"one without addresses", []compute.Interface{first, {ID: "c"}}, ``},
	} {
		files, err := guestFiles(&compute.Spec{Interfaces: tt.list})
		if err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		if diff := cmp.Diff(decode(t, tt.want), decode(t, string(files["latest/network_data.json"]))); diff != "" {
			t.Errorf("%s: network_data.json (-want +got):\n%s", tt.name, diff)
		}
	}
	first.Addresses[0].Prefix = "10.0.0.5"
	if _, err := guestFiles(&compute.Spec{Interfaces: []compute.Interface{first}}); !errors.Is(err, fault.Invalid) {
		t.Errorf("an address without a prefix: %v, want Invalid", err)
	}
}

// TestMetaData: meta_data.json has the name of the key, the availability zone, the launch index and the devices that the user has given a tag.
func TestMetaData(t *testing.T) {
	t.Parallel()
	files, err := guestFiles(&compute.Spec{
		PublicKey: "ssh-ed25519 AAAA", KeyName: "mine", LaunchIndex: 2, Zone: "az-1",
		Interfaces: []compute.Interface{{ID: "a", MAC: "fa:16:3e:00:00:01", Tag: "trusted"}, {ID: "b", MAC: "fa:16:3e:00:00:02"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	got, _ := decode(t, string(files["latest/meta_data.json"])).(map[string]any)
	want := map[string]any{
		"launch_index": 2.0, "availability_zone": "az-1", "public_keys": map[string]any{"mine": "ssh-ed25519 AAAA"},
		"keys":    []any{map[string]any{"name": "mine", "type": "ssh", "data": "ssh-ed25519 AAAA"}},
		"devices": []any{map[string]any{"type": "nic", "bus": "none", "address": "none", "mac": "fa:16:3e:00:00:01", "tags": []any{"trusted"}}},
	}
	for key, value := range want {
		if diff := cmp.Diff(value, got[key]); diff != "" {
			t.Errorf("%s (-want +got):\n%s", key, diff)
		}
	}
}

// decode returns a JSON text as a value; nil for an empty text.
func decode(t *testing.T, text string) (out any) {
	t.Helper()
	if text == "" {
		return nil
	}
	if err := json.Unmarshal([]byte(text), &out); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return out
}
