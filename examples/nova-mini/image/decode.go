package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/pagination"
)

// The client library decodes a page of a list as a whole, and fails if one image has an unexpected property. So this file decodes images one by one.

// attributes are the names of the attributes that the image service defines. Every other name in an image is one of the image's own properties.
var attributes = []string{
	"id", "name", "status", "visibility", "protected", "os_hidden", "checksum", "os_hash_algo", "os_hash_value", "owner", "size", "virtual_size", "container_format",
	"disk_format", "created_at", "updated_at", "tags", "direct_url", "min_ram", "min_disk", "self", "file", "stores", "schema", "locations",
}

// decodeImage decodes an image of a reply of the image service. It leaves out properties whose value is not a string. It returns an error if an attribute has another type than the
// image service documents.
func decodeImage(raw json.RawMessage) (Image, error) {
	var all map[string]json.RawMessage // a map keeps the exact names: the name of a property may differ from that of an attribute only in case
	if err := json.Unmarshal(raw, &all); err != nil {
		return Image{}, err
	}
	var out Image
	_ = json.Unmarshal(all["id"], &out.ID) // decoded first, because errors name it
	for name, to := range map[string]any{
		"id": &out.ID, "name": &out.Name, "status": &out.Status, "size": &out.Size, "min_ram": &out.MinRAMMiB, "min_disk": &out.MinDiskGiB, "disk_format": &out.Format,
		"created_at": &out.Created, "updated_at": &out.Updated, "checksum": &out.checksum, "owner": &out.owner, "os_hash_algo": &out.hashAlgo, "os_hash_value": &out.hash,
	} {
		if value, ok := all[name]; ok {
			if err := json.Unmarshal(value, to); err != nil { // null is the zero value
				return out, fmt.Errorf("the attribute %s of image %q: %w", name, out.ID, err)
			}
		}
	}
	for name, value := range all {
		var text *string
		if slices.Contains(attributes, name) || strings.HasPrefix(name, "os_glance_") || json.Unmarshal(value, &text) != nil || text == nil {
			continue
		}
		if out.Properties == nil {
			out.Properties = map[string]string{}
		}
		out.Properties[name] = *text
	}
	if out.ID == "" || out.Status == "" {
		return out, errors.New("the reply is not an image")
	}
	return out, nil
}

// extractImage decodes a reply that is one image.
func extractImage(r gophercloud.Result) (Image, error) {
	var raw json.RawMessage
	if err := r.ExtractInto(&raw); err != nil {
		return Image{}, err
	}
	return decodeImage(raw)
}

// imagePage is a page of a list of images.
type imagePage struct {
	pagination.PageResult

	list string // the URL of the list
}

// items returns the images of the page, not yet decoded.
func (p imagePage) items() ([]json.RawMessage, error) {
	var body struct {
		Images []json.RawMessage `json:"images"`
	}
	err := p.ExtractInto(&body)
	return body.Images, err
}

// IsEmpty implements pagination.Page.
func (p imagePage) IsEmpty() (bool, error) {
	list, err := p.items()
	return len(list) == 0, err
}

// NextPageURL implements pagination.Page. It takes only the query from the reply, so that the next page is always a page of the same list.
func (p imagePage) NextPageURL() (string, error) {
	var body struct {
		Next string `json:"next"`
	}
	if err := p.ExtractInto(&body); err != nil || body.Next == "" {
		return "", err
	}
	u, err := url.Parse(body.Next)
	if err != nil {
		return "", err
	}
	return p.list + "?" + u.RawQuery, nil
}

// GetBody implements pagination.Page.
func (p imagePage) GetBody() any { return p.Body }

var _ pagination.Page = imagePage{}
