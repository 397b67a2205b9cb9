package network

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"slices"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/extensions/security/groups"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/ports"

	"github.com/armature-go/armature/fault"
)

// Groups returns the security groups that a client names, by name or id. Errors: NotFound; Conflict if several groups have the name.
func (n *Neutron) Groups(ctx context.Context, token, project string, names []string) ([]Group, error) {
	if len(names) == 0 {
		return nil, nil
	}
	_, all, err := n.groups(ctx, token, project)
	if err != nil {
		return nil, err
	}
	var out []Group
	for _, name := range names {
		found, err := chooseGroup(all, project, name)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(out, found) {
			out = append(out, found)
		}
	}
	return out, nil
}

// chooseGroup returns the security group that a client of a project names, by name or id. Errors: NotFound; Conflict if several groups have the name.
func chooseGroup(all []groups.SecGroup, project, name string) (Group, error) {
	var found []Group
	for _, g := range all {
		if g.ID == name {
			return Group{g.ID, g.Name}, nil
		}
		if g.Name == name {
			found = append(found, Group{g.ID, g.Name})
		}
	}
	switch len(found) {
	case 0:
		return Group{}, fault.New(fault.NotFound, "Security group %s not found for project %s.", name, project)
	case 1:
		return found[0], nil
	default:
		return Group{}, fault.New(fault.Conflict, "Multiple security groups found matching '%s'. Use an ID to be more specific.", name)
	}
}

// NoGroup is the error, with Nova's text, for a change of a server's security groups that names an unknown group.
func NoGroup(name, project string) error {
	return fault.New(fault.NotFound, "Security group %s is not found for project %s", name, project)
}

// groups returns a client with a token, and the security groups of a project that the token may see.
func (n *Neutron) groups(ctx context.Context, token, project string) (*gophercloud.ServiceClient, []groups.SecGroup, error) {
	c, err := n.session.Client(ctx, token)
	if err != nil {
		return nil, nil, err
	}
	pages, err := groups.List(c, groups.ListOpts{ProjectID: project}).AllPages(ctx)
	if err != nil {
		return nil, nil, n.session.Translate(ctx, c, err)
	}
	out, err := groups.ExtractGroups(pages)
	return c, out, n.session.Translate(ctx, c, err)
}

// GroupList is a list of security groups with their rules.
type GroupList struct {
	Groups []groups.SecGroup
	// Sources has the groups to which the rules refer, by id, with their names and projects. It leaves out those that do not exist or that the client may not see.
	Sources map[string]groups.SecGroup
}

// GroupsOf returns the security groups of the ports of a server, without those that the token may not see.
func (n *Neutron) GroupsOf(ctx context.Context, token, server string) (out GroupList, _ error) {
	c, err := n.session.Client(ctx, token)
	if err != nil {
		return out, err
	}
	list, err := n.list(ctx, c, ports.ListOpts{DeviceID: server})
	if err != nil {
		return out, err
	}
	var ids []string
	for _, p := range list {
		ids = append(ids, p.SecurityGroups...)
	}
	found, err := findObjects[groups.SecGroup](ctx, n, c, "security-groups", ids)
	if err != nil {
		return out, err
	}
	return n.withSources(ctx, c, found)
}

// ProjectGroups returns the security groups of a project that the token may see, or, if project is empty, of all projects.
func (n *Neutron) ProjectGroups(ctx context.Context, token, project string) (out GroupList, _ error) {
	c, list, err := n.groups(ctx, token, project)
	if err != nil {
		return out, err
	}
	return n.withSources(ctx, c, list)
}

// Group returns the security group with an id, as the only one of the list. Errors: NotFound.
func (n *Neutron) Group(ctx context.Context, token, id string) (out GroupList, _ error) {
	c, err := n.session.Client(ctx, token)
	if err != nil {
		return out, err
	}
	list, err := findObjects[groups.SecGroup](ctx, n, c, "security-groups", []string{id})
	switch {
	case err != nil:
		return out, err
	case len(list) == 0:
		return out, fault.New(fault.NotFound, "Security group %s does not exist", id)
	}
	return n.withSources(ctx, c, list)
}

// withSources returns a list of security groups with the groups to which their rules refer. It asks Neutron for those that are not in the list.
func (n *Neutron) withSources(ctx context.Context, c *gophercloud.ServiceClient, list []groups.SecGroup) (GroupList, error) {
	out := GroupList{list, map[string]groups.SecGroup{}}
	for i := range list {
		out.Sources[list[i].ID] = list[i]
	}
	var others []string
	for i := range list {
		for j := range list[i].Rules {
			if id := list[i].Rules[j].RemoteGroupID; id != "" && out.Sources[id].ID == "" {
				others = append(others, id)
			}
		}
	}
	found, err := findObjects[groups.SecGroup](ctx, n, c, "security-groups", others, "id", "name", "tenant_id")
	for i := range found {
		out.Sources[found[i].ID] = found[i]
	}
	return out, err
}

// GroupNames returns the sorted names of the security groups of ports, by the id of the port. A group without a name has its id instead. GroupNames leaves out the ports and the groups that do not
// exist or that the token may not see.
func (n *Neutron) GroupNames(ctx context.Context, token string, ids []string) (map[string][]string, error) {
	c, err := n.session.Client(ctx, token)
	if err != nil {
		return nil, err
	}
	list, err := findObjects[ports.Port](ctx, n, c, "ports", ids, "id", "security_groups")
	if err != nil {
		return nil, err
	}
	var of []string
	for _, p := range list {
		of = append(of, p.SecurityGroups...)
	}
	all, err := findObjects[Group](ctx, n, c, "security-groups", of, "id", "name")
	if err != nil {
		return nil, err
	}
	names := map[string]string{}
	for _, g := range all {
		names[g.ID] = cmp.Or(g.Name, g.ID)
	}
	out := map[string][]string{}
	for _, p := range list {
		for _, id := range p.SecurityGroups {
			if name := names[id]; name != "" {
				out[p.ID] = append(out[p.ID], name)
			}
		}
		slices.Sort(out[p.ID]) // Neutron's order differs between two requests
	}
	return out, nil
}

// ErrGroupNotApplied is the error, with Nova's text, for a security group that cannot be added to a port without addresses.
var ErrGroupNotApplied = fault.New(fault.Invalid, "Network requires port_security_enabled and subnet associated in order to apply security groups.")

// AddGroup adds a security group, by name or id, to the ports of a server, with the rights of the client, and returns the groups that the ports have then. It has no effect on ports that
// have the group. After an error some ports may have it, and AddGroup may be repeated. Errors: NotFound if the project has no such group, or the server no port; Conflict if several
// groups have the name; [ErrGroupNotApplied].
func (n *Neutron) AddGroup(ctx context.Context, token, project, server, name string) ([]Group, error) {
	return n.changeGroups(ctx, token, project, server, name, func(p *bound, id string) (*[]string, error) {
		switch {
		case len(p.FixedIPs) == 0 && p.Addresses != "deferred":
			return nil, ErrGroupNotApplied
		case slices.Contains(p.SecurityGroups, id):
			return nil, nil
		}
		return new(append(slices.Clone(p.SecurityGroups), id)), nil
	})
}

// RemoveGroup removes a security group, by name or id, from the ports of a server, with the rights of the client, and returns the groups that the ports have then. After an error some
// ports may have lost it, and RemoveGroup may be repeated. Errors: NotFound if the project has no such group, or no port of the server has it; Conflict if several groups have the name.
func (n *Neutron) RemoveGroup(ctx context.Context, token, project, server, name string) ([]Group, error) {
	removed := false
	out, err := n.changeGroups(ctx, token, project, server, name, func(p *bound, id string) (*[]string, error) {
		i := slices.Index(p.SecurityGroups, id)
		if i < 0 {
			return nil, nil
		}
		removed = true
		return new(slices.Delete(slices.Clone(p.SecurityGroups), i, i+1)), nil
	})
	if err == nil && !removed {
		return nil, fault.New(fault.NotFound, "Security group %s not associated with the instance %s", name, server)
	}
	return out, err
}

// changeGroups changes the security groups of the ports of a server to what the function change returns for a port and the id of the group with a name; nil: the port stays as it is. It
// returns the groups that the ports have then.
func (n *Neutron) changeGroups(ctx context.Context, token, project, server, name string, change func(p *bound, id string) (*[]string, error)) ([]Group, error) {
	c, all, err := n.groups(ctx, token, project)
	if err != nil {
		return nil, err
	}
	group, err := chooseGroup(all, project, name)
	switch {
	case errors.Is(err, fault.NotFound):
		return nil, NoGroup(name, project)
	case err != nil:
		return nil, err
	}
	return untilUnchanged(ctx, n, server, func() ([]Group, error) {
		list, err := n.changePorts(ctx, c, server, project, func(p *bound) (*[]string, error) { return change(p, group.ID) })
		return groupsAt(all, list), err
	})
}

// changePorts changes the security groups of the ports of a server, as changeGroups says, and returns the ports as they are then. After errChanged it may be repeated.
func (n *Neutron) changePorts(ctx context.Context, c *gophercloud.ServiceClient, server, project string, change func(p *bound) (*[]string, error)) ([]bound, error) {
	list, err := n.portsOf(ctx, c, server, project)
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, fault.New(fault.NotFound, "instance_id %s could not be found as device id on any ports", server)
	}
	for i := range list {
		ids, err := change(&list[i])
		if err == nil && ids != nil {
			err = n.update(ctx, c, &list[i], ports.UpdateOpts{SecurityGroups: ids})
			switch reply, _ := errors.AsType[gophercloud.ErrUnexpectedResponseCode](err); {
			case errors.Is(err, errChanged):
			case reply.Actual == http.StatusBadRequest: // the port has no port security
				err = ErrGroupNotApplied
			case reply.Actual == http.StatusConflict:
				err = fault.New(fault.Conflict, "The network service refuses the port: %s", neutronError(reply.Body))
			default:
				err = n.session.Translate(ctx, c, err)
			}
		}
		if err != nil {
			return nil, err
		}
	}
	return list, nil
}

// errChanged means that a port has changed since it was read.
var errChanged = fault.New(fault.Conflict, "Another request changes the port at the same time.")

// update changes a port, unless the port has changed since p was read, and writes the port as it is then to p. Errors: errChanged; those of Neutron.
func (n *Neutron) update(ctx context.Context, c *gophercloud.ServiceClient, p *bound, opts ports.UpdateOpts) error {
	if p.RevisionNumber > 0 { // Neutron has the extension for revisions
		opts.RevisionNumber = &p.RevisionNumber
	}
	var now bound
	err := ports.Update(ctx, c, p.ID, opts).ExtractInto(&now)
	if reply, ok := errors.AsType[gophercloud.ErrUnexpectedResponseCode](err); ok && reply.Actual == http.StatusPreconditionFailed {
		return errChanged
	}
	if err == nil {
		*p = now
	}
	return err
}

// untilUnchanged calls change until its error is not errChanged, at most 50 times: change reads a port of a server and changes it, and other requests may do the same. In this process only one
// such change runs at a time for a server, because Neutron does not compare revisions if only addresses change.
func untilUnchanged[T any](ctx context.Context, n *Neutron, server string, change func() (T, error)) (out T, err error) {
	if err := n.changes.Lock(ctx, server); err != nil {
		return out, err
	}
	defer n.changes.Unlock(server)
	for range 50 {
		if out, err = change(); !errors.Is(err, errChanged) {
			break
		}
	}
	return out, err
}

// groupsAt returns those of the groups that a port of the list has, by name.
func groupsAt(all []groups.SecGroup, list []bound) []Group {
	out := []Group{}
	for _, g := range all {
		if slices.ContainsFunc(list, func(p bound) bool { return slices.Contains(p.SecurityGroups, g.ID) }) {
			out = append(out, Group{g.ID, g.Name})
		}
	}
	slices.SortFunc(out, func(a, b Group) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID)) })
	return out
}
