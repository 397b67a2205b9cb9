// Package network manages the network interfaces of servers in OpenStack's network service, Neutron.
package network

import (
	"context"
	"net/http"
	"slices"
	"strings"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/extensions/portsbinding"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/networks"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/ports"

	"github.com/armature-go/armature/examples/nova-mini/session"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/keylock"
)

// Request asks for a network interface of a server. It names a network, in which a port is made, or an existing port.
type Request struct {
	Network string `json:"network,omitempty"`
	Port    string `json:"port,omitempty"`
	// FixedIP is the address of the interface. Empty: Neutron chooses it.
	FixedIP string `json:"fixed_ip,omitempty"`
	Tag     string `json:"tag,omitempty"`
}

// Group is a security group.
type Group struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

// Interface is a network interface of a server: the client's request, and the port.
type Interface struct {
	Request Request `json:"request"`
	// Port is the zero value until the port is made.
	Port Port `json:"port,omitzero"`
}

// Wanted describes the interfaces of a server in the network service: the requested ones, with the ports that exist already. It is stored with the server. Nil: the
// server has no interfaces.
type Wanted struct {
	Interfaces []Interface `json:"interfaces,omitempty"`
	// Groups are the security groups of the ports that nova-mini makes. Nil: the default group of the project.
	Groups []Group `json:"groups,omitzero"`
}

// Given reports whether the client has named the port with an id. Such a port outlives the server.
func (w *Wanted) Given(port string) bool {
	return slices.ContainsFunc(w.Interfaces, func(i Interface) bool { return i.Request.Port == port })
}

// Index returns the index of the interface that has a port, or -1.
func (w *Wanted) Index(port string) int {
	if w == nil || port == "" {
		return -1
	}
	return slices.IndexFunc(w.Interfaces, func(i Interface) bool { return i.Port.ID == port })
}

// Ports returns the ports of those interfaces that have one, in the order of the interfaces.
func (w *Wanted) Ports() (out []Port) {
	if w == nil {
		return nil
	}
	for _, i := range w.Interfaces {
		if i.Port.ID != "" {
			out = append(out, i.Port)
		}
	}
	return out
}

// Bound reports whether each interface has a port that is bound on a host.
func (w *Wanted) Bound(host string) bool {
	return w == nil || !slices.ContainsFunc(w.Interfaces, func(i Interface) bool { return i.Port.Host != host })
}

// Unbind notes that the ports are bound nowhere, so that they are read and bound again when the server gets a host.
func (w *Wanted) Unbind() {
	if w == nil {
		return
	}
	for i := range w.Interfaces {
		w.Interfaces[i].Port.Host = ""
	}
}

// Port is a port of a server. It is stored with the server, so that the API shows a server without a request to Neutron.
type Port struct {
	ID          string    `json:"id"`
	Network     string    `json:"network"`
	NetworkName string    `json:"network_name"`
	MAC         string    `json:"mac"`
	Addresses   []Address `json:"addresses,omitempty"`
	Tag         string    `json:"tag,omitempty"`
	// Bridge is the name of the bridge on the host, if Neutron names one. Host is where the port is bound. It is empty while a port that the client has
	// named is about to be bound, and while the server is on no host.
	Bridge string `json:"bridge,omitempty"`
	Host   string `json:"host,omitempty"`
	// MTU and Subnets, those of the Addresses, are what the guest is told. They are as they were when the port was bound.
	MTU     int      `json:"mtu,omitempty"`
	Subnets []Subnet `json:"subnets,omitempty"`
	// Status is ACTIVE or DOWN. It is not stored.
	Status string `json:"-"`
}

// Subnet is a subnet of a port. The fields are Neutron's.
type Subnet struct {
	ID       string   `json:"id"`
	CIDR     string   `json:"cidr"`
	Gateway  string   `json:"gateway,omitempty"`
	DHCP     bool     `json:"dhcp,omitempty"`
	IPv6Mode string   `json:"ipv6_mode,omitempty"`
	DNS      []string `json:"dns,omitempty"`
	Routes   []Route  `json:"routes,omitempty"`
}

// Route is a route of a subnet.
type Route struct {
	Destination string `json:"destination"`
	Gateway     string `json:"gateway"`
}

// Address is an address of a port.
type Address struct {
	IP     string `json:"ip"`
	Subnet string `json:"subnet"`
}

// Version returns 4 or 6.
func (a Address) Version() int {
	if strings.Contains(a.IP, ":") {
		return 6
	}
	return 4
}

// Server identifies the server whose ports a method changes.
type Server struct {
	ID, Project string
	// Host is where the ports are bound, and Zone its availability zone.
	Host, Zone string
	Wanted     Wanted
	// Launched reports that the server has run: a port that it had and has no more is not made again.
	Launched bool
}

// Neutron is a client of the network service. It is safe for concurrent use. Every method blocks until the service answers, and may return Unavailable.
type Neutron struct {
	session *session.Session
	changes keylock.Locks // locks for changes of the ports of servers, by the server's id
}

// New returns a client of the network service. It sends no request. Errors: those of [session.New].
func New(cfg session.Config) (*Neutron, error) {
	cfg.Type, cfg.Version = "network", "v2.0"
	s, err := session.New(cfg)
	return &Neutron{session: s}, err
}

// ownerPrefix begins the device_owner of the ports of servers, before the availability zone.
const ownerPrefix = "compute:"

// bindingFailed is the binding:vif_type of a port that Neutron cannot bind on the port's host, for example because Neutron's agent on that host is away.
const bindingFailed = "binding_failed"

// ErrBindingFailed means that Neutron cannot bind a port on a host. Binding on another host may succeed.
var ErrBindingFailed = fault.Sentinel(fault.Invalid, bindingReason, "Binding failed for a port, please check neutron logs for more information.")

const bindingReason = "BindingFailed"

// bound is a port as Neutron shows it to an administrator: with its binding.
type bound struct {
	ports.Port
	portsbinding.PortsBindingExt
	PortAllocation
}

// Client is a client of nova-mini's API. Admin reports whether the client may use networks of other projects that are not shared, and choose addresses in networks
// of other projects. External reports whether the client may use external networks that are not shared.
type Client struct {
	Token string
	// Project is the project of the servers. The client may be of another project.
	Project         string
	Admin, External bool
	// Server is the id of the existing server that gets an interface. Empty: the request creates servers.
	Server string
}

// Errors of [Neutron.Check] about requests that Neutron cannot satisfy.
var (
	ErrAmbiguous    = fault.Sentinel(fault.Conflict, "NetworkAmbiguous", "Multiple possible networks found, use a Network ID to be more specific.")
	ErrAddressInUse = fault.Sentinel(fault.Conflict, addressReason, "Fixed IP address is already in use.")
)

const addressReason = "FixedIPAlreadyInUse"

// Check checks the requests of a client with the client's token: the networks and the ports must exist, and must be usable for the number of servers in the parameter count, and the project's
// quota must have enough ports left. Check returns the requests with the network of each port. If the list is empty, Check chooses the only network of the project. If the project has no
// network, Check returns no request, or, with auto, Invalid. The texts are Nova's. Errors: NotFound if a network or a port does not exist; Invalid; Conflict if the project has more than one
// network to choose from, or if a port or an address is in use; Denied if the quota does not have enough ports left.
func (n *Neutron) Check(ctx context.Context, by Client, list []Request, auto bool, count int) ([]Request, error) {
	project := by.Project
	c, err := n.session.Client(ctx, by.Token)
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		if list, err = n.choose(ctx, c, project, auto); err != nil || len(list) == 0 {
			return nil, err
		}
	}
	if err := n.checkQuota(ctx, c, project, list, count); err != nil { // checked first, because the quota limits the number of requests to Neutron below
		return nil, err
	}
	out := slices.Clone(list)
	in, err := n.networksOf(ctx, c, list)
	if err != nil {
		return nil, err
	}
	for i := range out {
		if out[i].Port == "" {
			err = n.checkNetwork(ctx, c, by, in, &out[i], count)
		} else {
			err = n.checkPort(ctx, c, by, &out[i], count)
		}
		if err != nil {
			return nil, err
		}
	}
	if err := checkTwice(out); err != nil {
		return nil, err
	}
	return out, nil
}

// checkTwice returns Invalid if two requests name the same port.
func checkTwice(list []Request) error {
	for i, r := range list {
		if r.Port != "" && slices.ContainsFunc(list[:i], func(before Request) bool { return before.Port == r.Port }) {
			return fault.New(fault.Invalid, "Port ID '%s' was specified twice: you cannot attach a port multiple times.", r.Port)
		}
	}
	return nil
}

// choose returns a request for the only network of a project, or no request if the project has no network. Errors: Invalid for auto without a network; [ErrAmbiguous].
func (n *Neutron) choose(ctx context.Context, c *gophercloud.ServiceClient, project string, auto bool) ([]Request, error) {
	all, err := n.available(ctx, c, project)
	switch {
	case err != nil:
		return nil, err
	case len(all) > 1:
		return nil, ErrAmbiguous
	case len(all) == 0 && auto:
		return nil, fault.New(fault.Invalid, "Unable to automatically allocate a network for project %s", project)
	case len(all) == 0:
		return nil, nil
	}
	return []Request{{Network: all[0].ID}}, nil
}

// available returns the networks of a project and the shared ones.
func (n *Neutron) available(ctx context.Context, c *gophercloud.ServiceClient, project string) ([]networks.Network, error) {
	var out []networks.Network
	for _, opts := range []networks.ListOpts{{ProjectID: project, Shared: new(false)}, {Shared: new(true)}} {
		pages, err := networks.List(c, opts).AllPages(ctx)
		if err != nil {
			return nil, n.session.Translate(ctx, c, err)
		}
		some, err := networks.ExtractNetworks(pages)
		if err != nil {
			return nil, n.session.Translate(ctx, c, err)
		}
		out = append(out, some...)
	}
	return out, nil
}

// usable has what decides who may use a network.
type usable struct {
	ID       string   `json:"id"`
	Project  string   `json:"project_id"`
	Shared   bool     `json:"shared"`
	External bool     `json:"router:external"`
	Subnets  []string `json:"subnets"`
}

// networksOf returns the networks that requests name, as far as c may see them.
func (n *Neutron) networksOf(ctx context.Context, c *gophercloud.ServiceClient, list []Request) ([]usable, error) {
	var ids []string
	for _, r := range list {
		if r.Port == "" {
			ids = append(ids, r.Network)
		}
	}
	return findObjects[usable](ctx, n, c, "networks", ids, "id", "project_id", "shared", "router:external", "subnets")
}

// checkNetwork checks the network of a request, which is one of the networks in. nova-mini makes ports as an administrator, so checkNetwork itself refuses the requests that Neutron would
// refuse the client. The client may not use networks of other projects that are visible but not shared, nor, as in Nova, external networks. It may not choose an address in a shared
// network of another project.
func (n *Neutron) checkNetwork(ctx context.Context, c *gophercloud.ServiceClient, by Client, in []usable, r *Request, count int) error {
	i := slices.IndexFunc(in, func(one usable) bool { return strings.EqualFold(one.ID, r.Network) })
	if i < 0 {
		return fault.New(fault.NotFound, "Network %s could not be found.", r.Network)
	}
	is := &in[i]
	may := by.Admin // whether the client may use the network of another project
	if is.External {
		may = by.External
	}
	switch {
	case !is.Shared && (is.External || is.Project != by.Project) && !may:
		return fault.New(fault.Denied, "It is not allowed to create an interface on external network %s", r.Network)
	case r.FixedIP != "" && is.Project != by.Project && !by.Admin:
		return fault.New(fault.Denied, "It is not allowed to choose an address in network %s, which another project owns", r.Network)
	case len(is.Subnets) == 0:
		return fault.New(fault.Invalid, "Network %s requires a subnet in order to boot instances on.", r.Network)
	case r.FixedIP == "":
		r.Network = is.ID
		return nil
	case count > 1:
		return fault.New(fault.Invalid, "max_count cannot be greater than 1 if an fixed_ip is specified.")
	}
	r.Network = is.ID
	list, err := n.list(ctx, c, ports.ListOpts{NetworkID: r.Network, FixedIPs: []ports.FixedIPOpts{{IPAddress: r.FixedIP}}})
	if err == nil && len(list) > 0 {
		err = fault.WithReason(fault.New(fault.Conflict, "Fixed IP address %s is already in use on instance %s.", r.FixedIP, list[0].DeviceID), addressReason, nil)
	}
	return err
}

// PortAllocation says how a port gets its addresses: none means that it has no address, and deferred that it gets one when it is bound.
type PortAllocation struct {
	Addresses string `json:"ip_allocation"`
}

func (n *Neutron) checkPort(ctx context.Context, c *gophercloud.ServiceClient, by Client, r *Request, count int) error {
	var more PortAllocation
	reply := ports.Get(ctx, c, r.Port)
	is, err := reply.Extract()
	if err == nil {
		err = reply.ExtractIntoStructPtr(&more, "port")
	}
	switch {
	case gophercloud.ResponseCodeIs(err, http.StatusNotFound):
		return NoPort(r.Port)
	case err != nil:
		return n.session.Translate(ctx, c, err)
	case is.ProjectID != by.Project && is.TenantID != by.Project && by.Server != "":
		return fault.New(fault.Invalid, "Port %s not usable for instance %s.", r.Port, by.Server)
	case is.ProjectID != by.Project && is.TenantID != by.Project:
		return NoPort(r.Port)
	case is.DeviceID != "":
		return PortInUse(r.Port)
	case len(is.FixedIPs) == 0 && by.Server == "" && more.Addresses != "none" && more.Addresses != "deferred": // as in Nova, which does not check an attachment
		return fault.New(fault.Invalid, "Port %s requires a FixedIP in order to be used.", r.Port)
	case count > 1:
		return fault.New(fault.Invalid, "Unable to launch multiple instances with a single configured port ID. Please launch your instance one by one with different ports.")
	}
	r.Port, r.Network = is.ID, is.NetworkID
	return nil
}

// NoPort returns NotFound for a port that does not exist, or that a client may not see.
func NoPort(id string) error { return fault.New(fault.NotFound, "Port id %s could not be found.", id) }

// PortInUse returns the error Conflict for a port that a server has.
func PortInUse(port string) error { return fault.New(fault.Conflict, "Port %s is still in use.", port) }

// checkQuota returns Denied if the quota of a project does not allow the new ports. The quota may change until the ports are made; then Neutron refuses them.
func (n *Neutron) checkQuota(ctx context.Context, c *gophercloud.ServiceClient, project string, list []Request, count int) error {
	need := 0
	for _, r := range list {
		if r.Port == "" {
			need += count
		}
	}
	if need == 0 {
		return nil
	}
	var reply struct {
		Quota struct{ Port int }
	}
	// Neutron shows every client the quota of the client's own project.
	resp, err := c.Get(ctx, c.ServiceURL("quotas", project), &reply, nil) // Get reads the body and closes it
	if err != nil {
		return n.session.Translate(ctx, c, err)
	}
	_ = resp.Body.Close()
	if reply.Quota.Port < 0 {
		return nil
	}
	have, err := n.list(ctx, c, ports.ListOpts{ProjectID: project})
	if err == nil && len(have)+need > reply.Quota.Port {
		err = fault.New(fault.Denied, "Maximum number of ports exceeded")
	}
	return err
}

// list returns the ports that opts select.
func (n *Neutron) list(ctx context.Context, c *gophercloud.ServiceClient, opts ports.ListOpts) (out []bound, err error) {
	pages, err := ports.List(c, opts).AllPages(ctx)
	if err == nil {
		err = ports.ExtractPortsInto(pages, &out)
	}
	return out, n.session.Translate(ctx, c, err)
}

// Ports returns the present ports of a server, as far as the token may see them.
func (n *Neutron) Ports(ctx context.Context, token, server string) ([]Port, error) {
	c, err := n.session.Client(ctx, token)
	if err != nil {
		return nil, err
	}
	list, err := n.list(ctx, c, ports.ListOpts{DeviceID: server})
	if err != nil {
		return nil, err
	}
	out := make([]Port, len(list))
	for i := range list {
		out[i] = list[i].shown()
	}
	return out, nil
}

func (b *bound) shown() Port {
	out := Port{ID: b.ID, Network: b.NetworkID, MAC: b.MACAddress, Status: b.Status}
	out.Bridge, _ = b.VIFDetails["bridge_name"].(string)
	for _, ip := range b.FixedIPs {
		out.Addresses = append(out.Addresses, Address{ip.IPAddress, ip.SubnetID})
	}
	return out
}
