// Hands what the server asks of a security key to the browser, and puts the browser's answer into the form.
// Source: W3C Web Authentication Level 2, 5.1.3 and 5.1.4; the JSON of answers is that of Level 3, 5.1.1.
"use strict";

const toBytes = (text) =>
  Uint8Array.from(atob(text.replace(/-/g, "+").replace(/_/g, "/")), (each) => each.charCodeAt(0));

const toText = (buffer) =>
  btoa(Array.from(new Uint8Array(buffer), (each) => String.fromCharCode(each)).join(""))
    .replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "");

const withBytes = (keys) => (keys || []).map((each) => ({ ...each, id: toBytes(each.id) }));

const ASKING = {
  create: (options) => navigator.credentials.create({
    publicKey: {
      ...options,
      challenge: toBytes(options.challenge),
      user: { ...options.user, id: toBytes(options.user.id) },
      excludeCredentials: withBytes(options.excludeCredentials),
    },
  }),
  get: (options) => navigator.credentials.get({
    publicKey: {
      ...options,
      challenge: toBytes(options.challenge),
      allowCredentials: withBytes(options.allowCredentials),
    },
  }),
};

const PARTS = ["clientDataJSON", "attestationObject", "authenticatorData", "signature", "userHandle"];

const toJson = (credential) => {
  const response = {};
  for (const part of PARTS) {
    if (credential.response[part]) response[part] = toText(credential.response[part]);
  }
  if (credential.response.getTransports) response.transports = credential.response.getTransports();
  return JSON.stringify({
    id: credential.id, rawId: toText(credential.rawId), type: credential.type, response, clientExtensionResults: {},
  });
};

// What went wrong, by the name of the error. Source: Level 2, 5.1.3 and 5.1.4.
const PROBLEMS = {
  InvalidStateError: "This key is registered already.",
  NotAllowedError: "No key answered in time, or it was cancelled. Try again.",
  SecurityError: "The browser allows no keys at this address.",
};

const answer = async (form) => {
  const status = form.querySelector("[data-status]");
  const button = form.querySelector("button");
  status.textContent = "Touch your key, or follow your browser.";
  button.disabled = true;
  try {
    const credential = await ASKING[form.dataset.key](JSON.parse(form.dataset.options));
    form.elements.answer.value = toJson(credential);
    form.submit();
  } catch (error) {
    status.textContent = PROBLEMS[error.name] || "The browser could not use the key. Try again.";
    button.disabled = false;
  }
};

if (window.PublicKeyCredential) {
  for (const each of document.querySelectorAll("[data-without-keys]")) each.hidden = true;
  for (const form of document.querySelectorAll("form[data-key]")) {
    form.hidden = false;
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      answer(form);
    });
  }
}
