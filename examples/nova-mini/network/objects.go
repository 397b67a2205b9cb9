package network

import (
	"context"
	"encoding/json"
	"net/url"
	"slices"
	"strings"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/pagination"
)

// maxIDs is the maximum number of ids in the URL of a request, as in Nova, because Neutron limits the length of a URL.
const maxIDs = 150

// findObjects returns the objects of a kind, such as security-groups, with the given ids. It leaves out those that do not exist or that c may not see. An id may be there twice. The objects
// have only the given fields or, if fields is empty, all. The client library has a filter for only one id.
func findObjects[T any](ctx context.Context, n *Neutron, c *gophercloud.ServiceClient, kind string, ids []string, fields ...string) (out []T, _ error) {
	ids = slices.Clone(ids)
	slices.Sort(ids)
	for some := range slices.Chunk(slices.Compact(ids), maxIDs) {
		query := url.Values{"id": some, "fields": fields}
		err := pagination.NewPager(c, c.ServiceURL(kind)+"?"+query.Encode(), func(r pagination.PageResult) pagination.Page {
			return objectPage{pagination.LinkedPageBase{PageResult: r}, strings.ReplaceAll(kind, "-", "_")}
		}).EachPage(ctx, func(_ context.Context, p pagination.Page) (bool, error) {
			var list []T
			err := p.(objectPage).extract(&list) //nolint:forcetypeassert // made above
			out = append(out, list...)
			return true, err
		})
		if err != nil {
			return nil, n.session.Translate(ctx, c, err)
		}
	}
	return out, nil
}

// objectPage is a page of a list of objects. The field name is the name of the list in the reply.
type objectPage struct {
	pagination.LinkedPageBase

	name string
}

func (p objectPage) extract(list any) error { return p.ExtractIntoSlicePtr(list, p.name) }

// IsEmpty implements pagination.Page.
func (p objectPage) IsEmpty() (bool, error) {
	var list []struct{}
	err := p.extract(&list)
	return len(list) == 0, err
}

// NextPageURL implements pagination.Page.
func (p objectPage) NextPageURL() (string, error) {
	var reply map[string]json.RawMessage
	var links []gophercloud.Link
	err := p.ExtractInto(&reply)
	if raw := reply[p.name+"_links"]; err == nil && raw != nil {
		err = json.Unmarshal(raw, &links)
	}
	if err != nil {
		return "", err
	}
	return gophercloud.ExtractNextURL(links)
}
